"""What ``focal-mm report`` does beyond writing a page: validate a checkpoint, and watch runs."""

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config

from ..config import type_name
from ..engine import find_newest
from ..engine.checkpoints import peek
from ..report import FOLDER, read_run, write_report
from ..report.configs import read_literals
from .runner import build_runner, load_config, require_files


def describe(run: dict[str, Any]) -> str:
    """Return a line on how far a run is."""
    state = run['state']
    goal = state['max_iters'] or state['max_epochs']
    at = state['iter'] if state['max_iters'] or state['epoch'] is None else state['epoch']
    unit = 'iteration' if at is state['iter'] else 'epoch'
    text = f'{run["path"]}: {state["kind"]}, {unit} {at}' + (f' of {goal}' if goal else '')
    missing = '' if run['details'] else '; without results of classes, --evaluate makes them'
    return '; '.join([text, *run['notes']]) + missing


def watch(work_dirs: Sequence[Path], page: Path, base: str | None, seconds: int) -> None:
    """Write the page again and again, until no run goes on any more.

    Args:
        work_dirs (sequence of Path): Work folders.
        page (Path): The file.
        base (str or None): Config that those of the runs are compared with.
        seconds (int): Time between two pages.
    """
    while True:
        runs = write_report(work_dirs, page, base, seconds)
        print('; '.join(map(describe, runs)), flush=True)
        if not any(run['state']['kind'] == 'going on' for run in runs):
            break
        time.sleep(seconds)
    write_report(work_dirs, page, base)  # one that doesn't load itself any more
    print(page)


def evaluate(work_dir: Path, checkpoint: str, options: dict[str, Any]) -> None:
    """Validate a checkpoint of a run, so that its report has results of each class.

    The folder gets nothing but ``report/val_ITERATION.json``.

    Args:
        work_dir (Path): The folder. The model of its config is built, as in any test.
        checkpoint (str): A file, or the name of one in the folder; ``'auto'``: the best one, else
            the newest.
        options (dict): Settings of the config by dotted key.

    Raises:
        FileNotFoundError: If there is no run, no checkpoint or no data.
        ValueError: If the config can't be read, or has no validation.
    """
    run = read_run(work_dir)
    file = _find_checkpoint(work_dir, checkpoint)
    text = run['config']['text']
    if not text:
        raise FileNotFoundError(f'{work_dir}: no config in this folder, so --evaluate has no model')
    try:
        read_literals(text)
    except ValueError as error:
        raise ValueError(
            f'{run["config"]["file"]}: {error}; --evaluate runs no such code'
        ) from error
    with TemporaryDirectory() as folder:
        config = Path(folder, 'config.py')
        config.write_text(text)
        cfg = load_config(str(config), folder, options=options)
        _only_validate(cfg, work_dir, file)
        require_files(cfg, 'val_dataloader')
        print(f'validating {file}', file=sys.stderr)
        with redirect_stdout(sys.stderr):  # messages of the libraries
            build_runner(cfg).val()


def _only_validate(cfg: Config, work_dir: Path, file: Path) -> None:
    """Make a config validate a checkpoint, and leave out whatever writes into the work folder.

    Raises:
        ValueError: If the config has no validation.
    """
    if cfg.get('val_dataloader') is None or cfg.get('val_evaluator') is None:
        raise ValueError(f'{work_dir}: its config has no val_dataloader and val_evaluator')
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    for key in ('test_cfg', 'test_dataloader', 'test_evaluator'):
        cfg[key] = None
    meta = peek(file).get('meta') or {}
    when = {key: int(meta.get(key, 0)) for key in ('epoch', 'iter')}
    kept = ('timer', 'logger', 'runtime_info')
    hooks = {key: hook for key, hook in (cfg.get('default_hooks') or {}).items() if key in kept}
    report = dict(type='focal_mm.ReportHook', folder=str(work_dir / FOLDER), when=when)
    cfg.default_hooks = dict(hooks, report=report)
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) == 'EMAHook'
    ]
    cfg.load_from, cfg.resume = str(file), False
    cfg.visualizer = None


def _find_checkpoint(work_dir: Path, name: str) -> Path:
    if name != 'auto':
        for file in (Path(name), work_dir / name):
            if file.is_file():
                return file
        raise FileNotFoundError(f'--evaluate {name}: no such file, also not in {work_dir}')
    best = sorted(work_dir.glob('best_*.pth'), key=lambda file: file.stat().st_mtime)
    if best:
        return best[-1]
    found = find_newest(work_dir)
    if found.path is None:
        broken = ''.join(f'; {one}' for one in found.broken)
        raise FileNotFoundError(f'{work_dir}: no whole checkpoint in this folder{broken}')
    return Path(found.path)
