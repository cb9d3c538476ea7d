"""What was found in annotation files, remembered by their content."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from ...cache import cache_dir, whole_file
from .json_file import digest

KEPT = 50  # files of the cache
_LARGE = 30  # MiB of a file that takes more than two seconds


def remember(file: Path, rules: str, examine: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was found in a file, from the cache if its content was examined before.

    Args:
        file (Path): The file. Its name is not part of the key.
        rules (str): What else the result depends on.
        examine (Callable): Examines the file; its result is plain data.
    """
    try:
        content = digest(file)
    except (OSError, ValueError):  # no such file, or no file: also a finding
        return examine()
    key = hashlib.sha256(f'{content} {rules} {_code()}'.encode()).hexdigest()
    entry = cache_dir() / 'checks' / f'{key}.json'
    with suppress(OSError, ValueError):
        found = json.loads(entry.read_bytes())
        if isinstance(found, dict) and 'findings' in found:
            return found
    console = Console(stderr=True)
    size = file.stat().st_size >> 20
    if size > _LARGE and console.is_terminal:
        with console.status(f'{file.name}: reading {size} MiB'):
            found = examine()
    else:
        found = examine()
    # A cache that cannot be written is no reason to stop; lone surrogates cannot.
    with suppress(OSError, UnicodeEncodeError):
        with whole_file(entry) as part:
            part.write_text(json.dumps(found), encoding='utf-8')
        entries = sorted(entry.parent.glob('*.json'), key=lambda path: path.stat().st_mtime)
        for old in entries[:-KEPT]:
            old.unlink(missing_ok=True)
    return found


@cache
def _code() -> str:
    """Return a hash of the checks: other code may find something else."""
    files = sorted(Path(__file__).parent.glob('*.py'))
    return hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()
