"""A work folder of mmengine as plain data: what was logged, how far the run is, how to repeat it.

Nothing in the folder is run: configs are read as literals, and checkpoints are not opened.
"""

import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from .configs import differences, nearest_config, read_literals

FOLDER = 'report'  # beside the log: the files of ReportHook
HEAVY = ('curves', 'confusion', 'worst')  # of these files, kept for the newest validation
POINTS = 4000  # of a curve on the page
LOG_LINES = 40
# Without a sign of life for so many seconds, or for so many intervals between two lines of the log,
# a run that has not ended counts as stopped.
SILENCE, INTERVALS = 180, 5
_NOT_CURVES = ('step', 'iter', 'epoch', 'base_lr')
_FINISHED = re.compile(r'^(epoch|iter)_(\d+)\.pth$')


def read_run(work_dir: Path, base: str | None = None) -> dict[str, Any]:
    """Read a work folder.

    Args:
        work_dir (Path): The folder, of a run of any tool that uses mmengine's runner. The starts in
            it are joined: where one went on from an earlier iteration than another had reached,
            the later one counts.
        base (str, optional): Config that the run's is compared with. Default: what the run itself
            noted, or the installed config of the same name.

    Returns:
        dict: What the page shows; keys without a value mean that nothing was recorded.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
        ValueError: If ``base`` can't be read.
    """
    if not work_dir.is_dir():
        raise FileNotFoundError(f'{work_dir}: no such folder; give the work_dir of a run')
    starts = _find_starts(work_dir)
    if not starts:
        raise FileNotFoundError(
            f'{work_dir}: no run in this folder, which would have TIMESTAMP/vis_data/scalars.json '
            f'or TIMESTAMP/TIMESTAMP.log{_hint(work_dir)}'
        )
    notes: list[str] = []
    logs = [log for start in starts for log in sorted(start.glob('*.log'))[:1]]
    text = logs[-1].read_text(errors='replace') if logs else ''
    lines, joined = _join([_read_scalars(start, notes) for start in starts])
    train = [line for line in lines if _is_training(line)]
    val = [line for line in lines if not _is_training(line)]
    config_file, config_text = _find_config(work_dir, starts)
    config = _parse(config_text, config_file, notes)
    record = _newest(start / FOLDER / 'run.json' for start in starts)
    validations = _validations(work_dir, starts)
    loop = _part(config, 'train_cfg')
    state = _state(work_dir, starts, train, val, loop, record)
    if state['kind'] == 'going on' and _has_ended(work_dir, config):
        state['kind'] = 'stopped'
    _note_faults(train, notes)
    environment = _environment(text)
    return dict(
        name=work_dir.resolve().name,
        path=str(work_dir.resolve()),
        state=state,
        notes=notes,
        starts=joined,
        by_epoch='max_epochs' in loop or any('epoch' in line for line in train),
        train=_series(train),
        val=_series(val),
        validations=[_light(one) for one in validations],
        details=next((one for one in _by_age(work_dir, starts) if 'by_class' in one), None),
        speed=_speed(train, config, record, environment),
        config=dict(
            file=str(config_file) if config_file else None,
            text=config_text,
            content=config,
            **_compared(config, config_file, base, record),
        ),
        environment=environment,
        versions=record.get('versions'),
        git=record.get('git'),
        seed=_seed(record, environment, config),
        repeat=_repeat(work_dir, config_file, config, record, environment),
        tests=_tests(starts),
        log=_tail(text),
    )


def _hint(work_dir: Path) -> str:
    below = sorted({path.parents[2] for path in work_dir.glob('*/*/vis_data/scalars.json')})
    return f'; there are runs in {", ".join(map(str, below[:5]))}' if below else ''


def _find_starts(work_dir: Path) -> list[Path]:
    """Return the folders with logs, oldest first; a run with settings of its own may have them in
    the work folder itself.
    """
    folders = {path.parents[1] for path in work_dir.glob('*/vis_data/scalars.json')}
    folders |= {path.parents[1] for path in work_dir.glob('vis_data/scalars.json')}
    folders |= {log.parent for log in work_dir.glob('*/*.log') if log.stem == log.parent.name}
    return sorted(folders, key=lambda folder: (folder != work_dir, folder.name))


# ---- scalars -----------------------------------------------------------------------------------


def _read_scalars(start: Path, notes: list[str]) -> list[dict]:
    """Read the lines of a start; those that are broken are noted."""
    file = start / 'vis_data' / 'scalars.json'
    if not file.is_file():
        return []
    lines, broken = [], []
    for number, text in enumerate(file.read_text(errors='replace').splitlines(), 1):
        try:
            line = json.loads(text)
            line['step'] = int(line['step'])
        except (ValueError, TypeError, KeyError, RecursionError):
            if text.strip():
                broken.append(number)
            continue
        lines.append(line)
    if broken:
        shown = ', '.join(map(str, broken[:5])) + (', …' if len(broken) > 5 else '')
        notes.append(f'{file}: {len(broken)} broken lines left out ({shown})')
    return lines


def _is_training(line: dict) -> bool:
    return 'iter' in line or 'lr' in line or 'loss' in line


def _join(starts: list[list[dict]]) -> tuple[list[dict], list[str]]:
    """Join the lines of several starts, and say in a sentence each where they began."""
    joined: list[dict] = []
    said = []
    for lines in starts:
        train = [line for line in lines if _is_training(line)]
        last = max((line['step'] for line in joined if _is_training(line)), default=0)
        if train and joined:
            first = train[0]['step']
            # The validation that a step belongs to is counted in epochs or iterations, so that the
            # last line of training before it tells whether it is repeated.
            reached, kept = 0, []
            for line in joined:
                reached = line['step'] if _is_training(line) else reached
                if reached < first:
                    kept.append(line)
            joined = kept
            said.append(
                f'went on; its first line is of iteration {first}, the last one before it of {last}'
                if any(map(_is_training, kept))
                else f'began anew; what was logged before, up to iteration {last}, is not shown'
            )
        elif train:
            said.append(f'first line of iteration {train[0]["step"]}')
        elif lines:
            said.append('validated only')
        else:
            said.append('ended before the first line was logged, or only tested')
        joined += lines
    return joined, said


def _series(lines: list[dict]) -> dict[str, list[list]]:
    """Return the curve of each number that was logged: pairs of step and value.

    Values that are not finite are texts, and COCO's -1, where there are no such objects, are left
    out. Of very long curves every n-th point is kept, and all that are not finite.
    """
    found: dict[str, dict[int, float | str]] = {}
    for line in lines:
        for name, value in line.items():
            if name in _NOT_CURVES or isinstance(value, bool):
                continue
            if isinstance(value, (int, float)) and not (value == -1 and '/' in name):
                found.setdefault(name, {})[line['step']] = _number(value)  # the later of two
    curves = {name: [[*point] for point in points.items()] for name, points in found.items()}
    for name, points in curves.items():
        if (every := math.ceil(len(points) / POINTS)) > 1:
            kept = enumerate(reversed(points))  # the last one is always among them
            curves[name] = [p for i, p in kept if i % every == 0 or isinstance(p[1], str)][::-1]
    return curves


def _number(value: float) -> float | str:
    """Return a number with six digits, or as a text if it is not finite."""
    return float(f'{value:.6g}') if math.isfinite(value) else str(float(value))


def _note_faults(train: list[dict], notes: list[str]) -> None:
    for name in ('loss', 'grad_norm'):
        steps = [
            line['step']
            for line in train
            if isinstance(line.get(name), float) and not math.isfinite(line[name])
        ]
        if steps:
            notes.append(f'{name} is not finite in {len(steps)} lines, first at {steps[0]}')


# ---- validations -------------------------------------------------------------------------------


def _detail_files(work_dir: Path, starts: list[Path]) -> Iterator[Path]:
    for folder in dict.fromkeys([*starts, work_dir]):
        yield from (folder / FOLDER).glob('val_*.json')


def _validations(work_dir: Path, starts: list[Path]) -> list[dict]:
    """Return the details of each validation, of a later start where there are two."""
    found: dict[int, dict] = {}
    for file in sorted(_detail_files(work_dir, starts), key=lambda file: file.stat().st_mtime):
        content = _read_json(file)
        if isinstance(content.get('iter'), int):
            found[content['iter']] = content
    return [found[step] for step in sorted(found)]


def _by_age(work_dir: Path, starts: list[Path]) -> Iterator[dict]:
    files = sorted(_detail_files(work_dir, starts), key=lambda file: -file.stat().st_mtime)
    yield from map(_read_json, files)


def _light(details: dict) -> dict:
    return {key: value for key, value in details.items() if key not in HEAVY}


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(errors='replace'))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _newest(files: Iterable[Path]) -> dict:
    contents = [content for file in files if (content := _read_json(file))]
    return contents[-1] if contents else {}


def _tests(starts: list[Path]) -> list[dict]:
    """Return the results of tests, which mmengine writes beside the log."""
    results = []
    for start in starts:
        content = _read_json(start / f'{start.name}.json')
        numbers = {k: _number(v) for k, v in content.items() if isinstance(v, (int, float))}
        if numbers:
            results.append(dict(start=start.name, metrics=numbers))
    return results


# ---- config ------------------------------------------------------------------------------------


def _find_config(work_dir: Path, starts: list[Path]) -> tuple[Path | None, str]:
    """Return the newest config that the runner has written, and its text."""
    files = [path for path in work_dir.glob('*.py') if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime)
    dumped = [start / 'vis_data' / 'config.py' for start in starts]
    for path in [*reversed(files), *reversed(dumped)]:
        if path.is_file():
            return path, path.read_text(errors='replace')
    return None, ''


def _parse(text: str, file: Path | None, notes: list[str]) -> dict[str, Any]:
    try:
        return read_literals(text)
    except ValueError as error:
        notes.append(f'{file} is shown as it is, and not compared, because {error}')
        return {}


def _compared(config: dict, file: Path | None, base: str | None, record: dict) -> dict[str, Any]:
    """Return what the config is compared with, and how it differs."""
    if base:
        from mmengine.config import Config

        try:
            content = Config.fromfile(base)._cfg_dict
        except Exception as error:
            raise ValueError(f'--base {base}: {error}') from error
        return dict(base=base, changes=differences(content, config) if config else None)
    if 'changes' in record:
        return dict(base=record.get('base'), changes=record['changes'])
    found = nearest_config(file.name, config) if config and file else None
    return dict(base=found[0], changes=found[1]) if found else dict(base=None, changes=None)


# ---- state, speed, environment ------------------------------------------------------------------


def _has_ended(work_dir: Path, config: dict) -> bool:
    """Return whether a runner of ours has left the folder, which it holds by a file while it runs.

    A process that is killed leaves the file, and Windows has none.
    """
    ours = 'Durable' in str(config.get('runner_type'))
    return ours and os.name == 'posix' and not (work_dir / '.running').exists()


def _state(
    work_dir: Path, starts: list[Path], train: list[dict], val: list[dict], loop: dict, record: dict
) -> dict[str, Any]:
    """Return how far the run is, and whether it goes on."""
    at = train[-1]['step'] if train else 0
    epoch = train[-1].get('epoch') if train else None
    epochs, iters = _count(loop.get('max_epochs')), _count(loop.get('max_iters'))
    goal, unit = epochs or iters, 'epoch' if epochs else 'iter'
    last, begun = work_dir / 'last_checkpoint', starts[-1] / 'vis_data' / 'config.py'
    name = Path(last.read_text(errors='replace').strip()).name if last.is_file() else ''
    named = _FINISHED.search(name)
    reached = 0 if epochs else at
    # An older one is of an earlier run in the folder.
    new = named and not (begun.is_file() and last.stat().st_mtime < begun.stat().st_mtime)
    if named and new and named[1] == unit:
        reached = max(reached, int(named[2]))
    if train and val:  # a validation is counted in the unit of the loop
        reached = max(reached, val[-1]['step'])
    files = [file for start in starts for file in (*start.glob('*.log'), *start.glob('*/*.json'))]
    alive = max(file.stat().st_mtime for file in files) if files else 0
    interval = _interval(train)
    silent = time.time() - alive
    if goal and reached >= goal:
        kind = 'finished'
    elif silent < max(SILENCE, INTERVALS * interval):
        kind = 'going on'
    else:
        kind = 'stopped'
    seconds = sum(
        line['time'] * (line['step'] - before['step'])
        for before, line in zip([dict(step=0), *train], train)
        if _finite(line.get('time')) and line['step'] > before['step']
    )
    return dict(
        kind=kind,
        iter=at,
        epoch=epoch,
        max_epochs=epochs,
        max_iters=iters,
        alive=time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(alive)) if alive else None,
        silent=str(timedelta(seconds=round(silent))),
        training=str(timedelta(seconds=round(seconds))),
        checkpoint=name or None,
    )


def _part(config: dict, key: str) -> dict:
    """Return a dict of a config; an empty one where there is none."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def _count(value: Any) -> int | None:
    return int(value) if str(value).isdecimal() else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _interval(train: list[dict]) -> float:
    """Return the seconds between two lines of training."""
    if len(train) < 2 or not _finite(train[-1].get('time')):
        return 0
    return train[-1]['time'] * abs(train[-1]['step'] - train[-2]['step'])


def _speed(train: list[dict], config: dict, record: dict, environment: dict) -> dict[str, Any]:
    """Return the medians of time and of waiting for data, in seconds an iteration."""
    waits = sorted(line['data_time'] for line in train if _finite(line.get('data_time')))
    times = sorted(line['time'] for line in train if _finite(line.get('time')))
    if not waits or not times:
        return {}
    wait, whole = waits[len(waits) // 2], times[len(times) // 2]
    loader = _part(config, 'train_dataloader')
    batch = loader.get('batch_size') or _part(loader, 'batch_sampler').get('batch_size')
    processes = _count(record.get('processes')) or _count(environment.get('GPU number')) or 1
    memory = [line['memory'] for line in train if _finite(line.get('memory'))]
    return dict(
        data=round(wait, 4),
        iteration=round(whole, 4),
        share=round(wait / whole, 4) if whole else None,
        pictures=round(batch * processes / whole, 2) if isinstance(batch, int) and whole else None,
        memory=max(memory, default=None),
    )


def _environment(text: str) -> dict[str, str]:
    """Return the environment that mmengine writes at the head of a log."""
    head = text.partition('System environment:')[2].partition('-' * 60)[0]
    pairs = re.findall(r'^    ([\w.,/ -]+): (.*)$', head, re.MULTILINE)
    return {key: value for key, value in pairs if 'compiling' not in key}


def _seed(record: dict, environment: dict, config: dict) -> str | None:
    for seed in (
        record.get('seed'),
        environment.get('seed'),
        _part(config, 'randomness').get('seed'),
    ):
        if seed is not None and seed != 'None':
            return str(seed)
    return environment.get('numpy_random_seed')


def _repeat(
    work_dir: Path, file: Path | None, config: dict, record: dict, environment: dict
) -> dict[str, str | None]:
    """Return the command that repeats a run, and where it is from."""
    if 'command' in record:
        where = f'cd {shlex.quote(str(record.get("folder")))}\n'
        drawn = _part(config, 'randomness').get('seed') is None
        hint = f'--cfg-options randomness.seed={record.get("seed")} repeats it'
        source = 'as it was typed' + f'; the seed was drawn, {hint}' * drawn
        return dict(command=where + str(record['command']), source=source)
    if file is None:
        return dict(command=None, source='neither the command nor the config was kept')
    again = f'{work_dir}-again'
    seed = environment.get('seed')
    command = f'focal-mm train {shlex.quote(str(file))} --work-dir {shlex.quote(again)}' + (
        f' --cfg-options randomness.seed={seed}' if seed and seed != 'None' else ''
    )
    return dict(
        command=command, source='made from the config, since the run did not note its command'
    )


def _tail(text: str) -> list[str]:
    """Return the last lines of a log, and the warnings and errors before them."""
    lines = text.partition('Config:\n')[2].splitlines() or text.splitlines()
    marked = [line for line in lines[:-LOG_LINES] if re.search(r' - (WARNING|ERROR) - ', line)]
    return [*marked[-LOG_LINES:], *lines[-LOG_LINES:]]
