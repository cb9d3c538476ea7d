"""The page of a report: one HTML file without any address in it."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import focal_mm

from ..cache import whole_file
from .configs import differences
from .reading import read_run

PAGE = 'report.html'
RUNS = 8  # side by side, as many as there are kinds of dashes


def write_report(
    work_dirs: Sequence[Path], page: Path, base: str | None = None, watch: int | None = None
) -> list[dict[str, Any]]:
    """Write the report of a run, or of several runs side by side.

    Args:
        work_dirs (sequence of Path): Work folders.
        page (Path): The new file.
        base (str, optional): Config that those of the runs are compared with. Default: see
            :func:`read_run`.
        watch (int, optional): Seconds after which the page loads itself again. Default: never.

    Returns:
        list[dict]: The runs, as :func:`read_run` returns them.

    Raises:
        FileNotFoundError: If a folder has no run.
        ValueError: If there are too many runs, or ``base`` can't be read.
    """
    if len(work_dirs) > RUNS:
        raise ValueError(f'{len(work_dirs)} folders: a report shows {RUNS} at most')
    runs = [read_run(folder, base) for folder in work_dirs]
    configs = [run['config'].pop('content') for run in runs]
    both = len(runs) == 2 and all(configs)
    content = dict(
        runs=runs,
        between=differences(*configs) if both else None,
        made=time.strftime('%Y-%m-%d %H:%M:%S'),
        version=focal_mm.__version__,
        watch=watch,
    )
    with whole_file(page) as part:
        part.write_text(_render(content), encoding='utf-8')
    return runs


def _render(content: dict[str, Any]) -> str:
    """Return the page. In the data, ``<`` and ``&`` are escaped, so that no text ends the script
    that holds it; the script puts texts on the page as texts.
    """
    folder = Path(__file__).parent
    data = json.dumps(_finite(content), separators=(',', ':'), allow_nan=False)
    for sign in '<>&':
        data = data.replace(sign, f'\\u{ord(sign):04x}')
    page = (folder / 'page.html').read_text(encoding='utf-8')
    for name, part in (
        ('STYLE', (folder / 'page.css').read_text(encoding='utf-8')),
        ('SCRIPT', (folder / 'page.js').read_text(encoding='utf-8')),
        ('DATA', data),
    ):
        page = page.replace(f'/*{name}*/', part)
    return page


def _finite(value: Any) -> Any:
    """Return a value with numbers that JSON does not have as texts."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
