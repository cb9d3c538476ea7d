"""Faults that meet a run: its process, its disk, its checkpoints, its numbers, its pictures."""

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from command import CONFIG, TINY, Command, Ended, train
from fault import Outcome, case

KILLED, DISK, CHECKPOINTS = 'The process', 'The disk', 'The checkpoints'
CHANGED, NUMBERS, DATA = 'A config that was changed', 'The numbers', 'Pictures and loaders'
EPOCH = 6  # iterations
RESUME = ('--resume', 'auto')
REFUSED = 'nothing; refused before anything was loaded'
ONE_KEPT = dict(default_hooks__checkpoint__max_keep_ckpts=1)


# ---- what a run has come to ----------------------------------------------------------------------


def digest(path: Path) -> str:
    """Return a hash of all weights, the optimizer and the schedules of a checkpoint."""
    content = torch.load(path, map_location='cpu', weights_only=False)
    sums = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            sums.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                sums.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for child in value:
                add(child)
        else:
            sums.update(repr(value).encode())

    # Whether an implementation is fused is a setting of the machine.
    add([content['state_dict'], content['optimizer'], content['param_schedulers']])
    return sums.hexdigest()


@cache
def whole() -> str:
    """Return the digest of the run that nothing happens to."""
    return digest(folder_of(4) / 'epoch_4.pth')


@cache
def folder_of(epochs: int) -> Path:
    """Return the work folder of a run that nothing has happened to, for copies."""
    folder = Path(os.environ['FAULTS_FOLDER'], f'whole_{epochs}', 'run')
    folder.parent.mkdir()
    until = {} if epochs == 4 else dict(before=lambda: stop_after(epochs * EPOCH))
    ended = train(folder, **until).wait()
    assert ended.status in (0, -signal.SIGKILL), ended.said
    return folder


def copy(folder: Path, epochs: int = 2) -> Path:
    """Return a copy of the run that was killed after some epochs, moved to another place."""
    return shutil.copytree(folder_of(epochs), folder / 'run')


def whole_after(work_dir: Path, *words: object, **options: object) -> bool:
    """Resume a run; return whether it ends as the one that nothing happened to."""
    ended = train(work_dir, *RESUME, *words, **options).wait()
    path = work_dir / 'epoch_4.pth'
    return ended.status == 0 and path.is_file() and digest(path) == whole()


def said(ended: Ended, *folders: Path) -> str:
    """Return the exit status and the line with the error, without what differs in each run."""
    line = ended.line.partition(': error: ')[2] or ended.line
    for folder in sorted(folders, key=lambda path: -len(str(path))):
        line = line.replace(f'{folder}/', '')
    line = re.sub(r'\S+/mini_imagenet[^/]*/', '', line)
    return f'exit status {ended.status}: {line}'


def one_line(ended: Ended) -> bool:
    """Return whether a mistake or a fault was told in one line, without a traceback."""
    return ended.status == 2 and ': error: ' in ended.line and 'Traceback' not in ended.said


# ---- injecting -----------------------------------------------------------------------------------


def at_iteration(number: int, act: Callable) -> None:
    """Do something at the end of an iteration."""
    from mmengine.runner import EpochBasedTrainLoop

    run_iter = EpochBasedTrainLoop.run_iter

    def and_act(loop, *args):
        run_iter(loop, *args)
        if loop._iter == number:
            act(loop.runner)

    EpochBasedTrainLoop.run_iter = and_act


def stop_after(number: int) -> None:
    """Kill the process when an epoch of so many iterations is over, validation included."""
    from mmengine.runner import ValLoop

    run = ValLoop.run

    def and_stop(loop):
        run(loop)
        if loop.runner.iter == number:
            os.kill(os.getpid(), signal.SIGKILL)

    ValLoop.run = and_stop


def at_picture(number: int, act: Callable) -> Callable[[], None]:
    """Return what does something when a process loads a picture, counted from 1."""

    def before() -> None:
        from mmcv.transforms import LoadImageFromFile

        count, load = [0], LoadImageFromFile.transform

        def transform(self, results):
            count[0] += 1
            if count[0] == number:
                act(results)
            return load(self, results)

        LoadImageFromFile.transform = transform

    return before


def kill_self(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- the process ---------------------------------------------------------------------------------


@case(KILLED, 'SIGKILL at 20 random moments of a run')
def _(folder):
    draw = random.Random(0)
    kills = 0
    work_dir = folder / 'run'
    long = dict(train_cfg__max_epochs=60, **ONE_KEPT)
    lost = []
    while kills < 20:
        running = train(work_dir, *RESUME, **long)
        running.kill_after(draw.uniform(1, 4))
        ended = running.wait()
        if ended.status != -signal.SIGKILL:
            return Outcome(said(ended, folder), 'the run', False)
        kills += 1
        seen = re.findall(r'Epoch\(train\) +\[(\d+)\]\[(\d+)/', ended.said)
        saved = [int(path.stem[6:]) for path in work_dir.glob('epoch_*.pth')]
        if seen:
            last = (int(seen[-1][0]) - 1) * EPOCH + int(seen[-1][1])
            lost.append(last - max(saved, default=0) * EPOCH)
    at = max(saved, default=0)
    a = train(
        folder / 'whole',
        **dict(long, train_cfg__max_epochs=60),
        before=lambda: stop_after((at + 1) * EPOCH),
    ).wait()
    b = train(work_dir, *RESUME, **long, before=lambda: stop_after((at + 1) * EPOCH)).wait()
    name = f'epoch_{at + 1}.pth'
    same = digest(folder / 'whole' / name) == digest(work_dir / name)
    good = same and max(lost) <= EPOCH and at > 3
    return Outcome(
        'each time the run went on; the weights after the last kill are '
        + ('the same to the bit' if same else f'others ({a.status}, {b.status})'),
        'at most the iterations since the last checkpoint, an epoch'
        if max(lost) <= EPOCH
        else f'up to {max(lost)} iterations',
        good,
    )


def kill_at_write(number: int) -> None:
    """Kill the process at the n-th step of writing, syncing, renaming and deleting files."""
    from focal_mm.engine import checkpoint_hook, checkpoints

    count = [0]

    def step():
        count[0] += 1
        if count[0] == number:
            kill_self()

    def stepping(function):
        def both(*args, **kwargs):
            step()
            return function(*args, **kwargs)

        return both

    checkpoints.os = type('os', (), dict(vars(os), fsync=staticmethod(stepping(os.fsync))))
    checkpoints._has_content = stepping(checkpoints._has_content)
    checkpoints.Path.replace = stepping(Path.replace)
    checkpoints._sync_folder = stepping(checkpoints._sync_folder)
    hook = checkpoint_hook.DurableCheckpointHook
    hook._remove = stepping(hook._remove)


@case(KILLED, 'SIGKILL in each of 12 steps of writing a checkpoint, one kept')
def _(folder):
    good = 0
    # The first epoch writes its checkpoint, last_checkpoint and the best one.
    for number in range(16, 28):
        work_dir = folder / str(number)
        ended = train(work_dir, **ONE_KEPT, before=lambda n=number: kill_at_write(n)).wait()
        there = any(work_dir.glob('epoch_*.pth'))
        good += ended.status == -9 and there and whole_after(work_dir, **ONE_KEPT)
    return Outcome(
        f'{good} of 12 times there was a whole checkpoint, and the run went on to the same weights '
        'to the bit',
        'the iterations since the checkpoint before',
        good == 12,
    )


def interrupt(folder: Path, number: int, status: int) -> Outcome:
    ended = train(
        folder / 'run', before=lambda: at_iteration(8, lambda _: os.kill(os.getpid(), number))
    ).wait()
    good = ended.status == status and whole_after(folder / 'run')
    return Outcome(
        f'saved within the iteration, exit status {ended.status}; resumed in the middle of the '
        'epoch to the same weights to the bit',
        'nothing',
        good,
    )


@case(KILLED, 'SIGTERM, as Slurm and torchrun send it', quick=True)
def _(folder):
    return interrupt(folder, signal.SIGTERM, 143)


@case(KILLED, 'SIGINT, Ctrl-C')
def _(folder):
    return interrupt(folder, signal.SIGINT, 130)


@case(KILLED, 'a second SIGTERM while the first one is saved')
def _(folder):
    def twice(_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.7)

    ended = train(folder / 'run', before=lambda: at_iteration(8, twice)).wait()
    good = ended.status == -signal.SIGTERM and whole_after(folder / 'run')
    return Outcome('the process ends at once', 'the iterations since the last checkpoint', good)


@case(KILLED, 'one of two processes is killed')
def _(folder):
    script = folder / 'two.py'
    script.write_text(
        f'import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n'
        'from run_cases import at_iteration, kill_self\n'
        'if sys.argv.pop() == "kill" and os.environ["RANK"] == "1":\n'
        '    at_iteration(8, kill_self)\n'
        'from focal_mm.cli.main import main\nmain()\n'
    )

    def run(work_dir, how):
        settings = [f'{key}={value}' for key, value in TINY.items()]
        return subprocess.run(
            [
                *(sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run'),
                *('--nproc-per-node=2', '--standalone', script, 'train', CONFIG, '--mini'),
                *('--work-dir', work_dir, *RESUME, '--cfg-options', *settings, how),
            ],
            capture_output=True,
            text=True,
            timeout=600,
        )

    killed = run(folder / 'run', 'kill')
    resumed = run(folder / 'run', 'go on')
    undisturbed = run(folder / 'whole', 'go on')
    same = digest(folder / 'run' / 'epoch_4.pth') == digest(folder / 'whole' / 'epoch_4.pth')
    good = killed.returncode != 0 and resumed.returncode == undisturbed.returncode == 0 and same
    return Outcome(
        'the other one ends, too; resumed, both end with the same weights to the bit',
        'the iterations since the last checkpoint',
        good,
    )


@case(KILLED, 'a worker of the loader is killed for its memory')
def _(folder):
    ended = train(
        folder / 'run', train_dataloader__num_workers=2, before=at_picture(9, kill_self)
    ).wait()
    good = one_line(ended) and 'a worker of a data loader has died' in ended.line
    good = good and whole_after(folder / 'run')
    return Outcome(
        'exit status 2 and one line: a worker of a data loader has died',
        'at most the iterations since the last checkpoint',
        good,
    )


def mix_sizes(log: Path, iterations: int) -> None:
    """Give each batch another size, and write down the memory of the process, in MB."""
    from mmpretrain.models import ClsDataPreprocessor

    forward, draw = ClsDataPreprocessor.forward, random.Random(0)

    def resized(self, data, training=False):
        data = forward(self, data, training)
        if training:
            size = (draw.randint(17, 96), draw.randint(17, 96))
            data['inputs'] = torch.nn.functional.interpolate(data['inputs'], size)
        return data

    def note(number):
        def write(_):
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            with log.open('a') as file:
                file.write(f'{pages * resource.getpagesize() // 2**20}\n')

        at_iteration(number, write)

    ClsDataPreprocessor.forward = resized
    for number in (iterations // 4, iterations):
        note(number)


@case(KILLED, '600 iterations of as many sizes of pictures, watched for memory')
def _(folder):
    few = dict(train_cfg__val_interval=100, default_hooks__checkpoint__interval=100)
    ended = train(
        folder / 'run',
        before=lambda: mix_sizes(folder / 'memory', 600),
        train_cfg__max_epochs=100,
        **few,
    ).wait(1200)
    early, late = map(int, (folder / 'memory').read_text().split())
    good = ended.status == 0 and late - early < 60
    return Outcome(
        'the last 450 need '
        + ('less than 60 MB more than the first 150' if good else f'{late - early} MB more'),
        'nothing',
        good,
    )


# ---- the disk ------------------------------------------------------------------------------------


def on_small_disk(folder: Path, size: str, *words: object, **options: object) -> tuple:
    """Train on a file system of a certain size; return how it ended and what is left there."""
    disk = folder / 'disk'
    disk.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', disk], check=True)
    try:
        ended = train(disk / 'run', *words, **options).wait()
        left = sorted(path.name for path in disk.glob('run/*.pth*'))
        shutil.copytree(disk / 'run', folder / 'run')
    finally:
        subprocess.run(['umount', disk], check=True)
    return ended, left


FULL = '3500k'  # the checkpoint of the first epoch and the best fit, those of the next do not


@case(DISK, 'a tmpfs that fills up')
def _(folder):
    keep = dict(default_hooks__checkpoint__max_keep_ckpts=-1)
    ended, left = on_small_disk(folder, FULL, **keep)
    good = one_line(ended) and 'are missing' in ended.line and 'epoch_1.pth' in left
    good = good and not any(name.endswith('.part') for name in left)
    good = good and whole_after(folder / 'run', **keep)
    line = re.sub(r'[\d.,]+ [kM]B', 'N MB', said(ended, folder / 'disk'))
    return Outcome(line, 'nothing that was saved; no stump is left', good)


@case(DISK, 'a tmpfs that fills up, with on_full_disk="continue"')
def _(folder):
    options = dict(
        default_hooks__checkpoint__max_keep_ckpts=-1,
        default_hooks__checkpoint__on_full_disk='continue',
    )
    ended, left = on_small_disk(folder, FULL, **options)
    good = ended.status == 0 and 'training goes on without saving' in ended.said
    return Outcome(
        'trains to its end and says at each epoch that it is not saved',
        'the checkpoints for which there is no space',
        good and 'epoch_1.pth' in left,
    )


@case(DISK, 'a quota: no file larger than a limit')
def _(folder):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))

    work_dir = copy(folder)
    ended = train(work_dir, *RESUME, before=limit).wait()
    good = one_line(ended) and 'a quota or a limit' in ended.line
    good = good and not any(work_dir.glob('*.part')) and whole_after(work_dir)
    line = re.sub(r'[\d.,]+ [kM]B', 'N MB', said(ended, work_dir))
    return Outcome(line, 'nothing that was saved', good)


@case(DISK, 'a work folder that cannot be written')
def _(folder):
    (folder / 'run').mkdir()
    (folder / 'run').chmod(0o555)

    def drop() -> None:
        for parent in folder.parents[:2]:
            parent.chmod(0o755)
        if os.getuid() == 0:
            os.setuid(65534)

    def before() -> None:  # once the config is read, of which others cannot read the copies
        from mmengine.runner import Runner

        start = Runner.__init__
        Runner.__init__ = lambda *args, **fields: (drop(), start(*args, **fields))[1]

    ended = train(folder / 'run', before=before).wait()
    line = re.sub(r'\d{8}_\d{6}', '(time)', said(ended, folder))
    return Outcome(line, 'nothing', one_line(ended) and 'run' in ended.line)


@case(DISK, 'two runs with one work folder')
def _(folder):
    first = train(folder / 'run', before=lambda: at_iteration(6, lambda _: time.sleep(600)))
    while not (folder / 'run' / 'epoch_1.pth').exists():
        time.sleep(0.05)
    second = Command(
        folder / 'second.log', 'train', CONFIG, '--mini', '--work-dir', folder / 'run'
    ).wait()
    first.kill()
    first.wait()
    good = one_line(second) and 'another run writes here' in second.line
    good = good and whole_after(folder / 'run')
    return Outcome(
        f'the second one: {re.sub("[(].*[)]", "(process N)", said(second, folder))}',
        'nothing of the first',
        good,
    )


# ---- the checkpoints -----------------------------------------------------------------------------


@case(CHECKPOINTS, 'the work folder is moved')
def _(folder):
    return Outcome('goes on to the same weights to the bit', 'nothing', whole_after(copy(folder)))


@case(CHECKPOINTS, 'the work folder is copied beside one that goes on')
def _(folder):
    first = copy(folder)
    second = shutil.copytree(first, folder / 'second')
    (second / 'last_checkpoint').write_text(f'{first}/epoch_3.pth')
    good = whole_after(first) and whole_after(second)
    log = (folder / 'second.log').read_text()
    return Outcome(
        'each goes on from its own checkpoint',
        'nothing',
        good and f'resumes from {second}' in log,
    )


def with_last_checkpoint(text: str | None) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        work_dir = copy(folder)
        if text is None:
            (work_dir / 'last_checkpoint').unlink()
        else:
            (work_dir / 'last_checkpoint').write_text(text)
        good = whole_after(work_dir)
        return Outcome('goes on to the same weights to the bit', 'nothing', good)

    return run


case(CHECKPOINTS, 'last_checkpoint is empty')(with_last_checkpoint(''))
case(CHECKPOINTS, 'last_checkpoint is gone')(with_last_checkpoint(None))
case(CHECKPOINTS, 'last_checkpoint names a file that is not there')(with_last_checkpoint('/no.pth'))


def with_broken(change: Callable[[bytes], bytes]) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        work_dir = copy(folder)
        shutil.copy(folder_of(1) / 'epoch_1.pth', work_dir)
        newest = work_dir / 'epoch_2.pth'
        newest.write_bytes(change(newest.read_bytes()))
        good = whole_after(work_dir)
        log = work_dir.with_name('run.log').read_text()
        line = next((line for line in log.splitlines() if 'passed over: ' in line), '')
        text = f'passed over{line.partition("passed over")[2]}'.replace(f'{work_dir}/', '')
        return Outcome(
            f'{text}; goes on from the one before to the same weights to the bit',
            'the iterations since the checkpoint before',
            good and bool(line),
        )

    return run


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


case(CHECKPOINTS, 'the newest is cut off', True)(with_broken(lambda data: data[: len(data) // 2]))
case(CHECKPOINTS, 'the newest has a bit that is wrong')(with_broken(flip))
case(CHECKPOINTS, 'the newest is empty')(with_broken(lambda data: b''))
case(CHECKPOINTS, 'the newest is a page of HTML')(with_broken(lambda data: b'<html>404</html>'))


@case(CHECKPOINTS, 'all are broken')
def _(folder):
    work_dir = copy(folder)
    for path in work_dir.glob('*.pth'):
        path.write_bytes(b'PK\3\4')
    ended = train(work_dir, *RESUME).wait()
    good = one_line(ended) and 'is whole' in ended.line
    return Outcome(
        'exit status 2 and one line that names them; the run does not start over',
        'what was broken',
        good,
    )


@case(CHECKPOINTS, 'the best one is gone')
def _(folder):
    work_dir = copy(folder)
    for path in work_dir.glob('best*'):
        path.unlink()
    good = whole_after(work_dir)
    good = good and 'is gone; the best one from now on' in work_dir.with_name('run.log').read_text()
    return Outcome(
        'says so, and keeps the best one from then on',
        'the best one until then',
        good and any(work_dir.glob('best*')),
    )


@case(CHECKPOINTS, 'weights without the state of a run are given to --resume')
def _(folder):
    path = folder / 'weights.pth'
    torch.save(dict(state_dict={}), path)
    ended = train(folder / 'run', '--resume', path).wait()
    return Outcome(said(ended, folder), REFUSED, one_line(ended))


@case(CHECKPOINTS, 'a pickle that runs code, under four suffixes, is given to --resume')
def _(folder):
    class Hostile:
        def __reduce__(self):
            return os.system, (f'touch {folder}/ran',)

    good = True
    for suffix in ('pth', 'pkl', 'bin', 'safetensors'):
        path = folder / f'hostile.{suffix}'
        torch.save(dict(state_dict={}, meta=dict(iter=1), optimizer=Hostile()), path)
        ended = train(folder / 'run', '--resume', path).wait()
        good = good and one_line(ended) and not (folder / 'ran').exists()
    return Outcome('exit status 2 and one line; nothing ran', REFUSED, good)


# ---- a config that was changed -------------------------------------------------------------------


def resumed_with(words: str, text: str = '', **options: object) -> Callable[[Path], Outcome]:
    """Return a case in which a run is resumed with another config, which does not fit."""

    def run(folder: Path) -> Outcome:
        work_dir = copy(folder)
        before = {path.name: path.read_bytes() for path in work_dir.glob('*.pth')}
        ended = resume_changed(work_dir, text, options)
        kept = before == {path.name: path.read_bytes() for path in work_dir.glob('*.pth')}
        good = one_line(ended) and words in ended.line and 'load_from=' in ended.line
        line = said(ended, work_dir).partition('; resume with')[0]
        return Outcome(f'{line}; offers load_from', REFUSED, good and kept)

    return run


def resume_changed(work_dir: Path, text: str, options: dict) -> Ended:
    config: object = CONFIG
    if text:
        config = work_dir.with_name('changed.py')
        config.write_text(f"_base_ = '{CONFIG}'\n{text}\n")
        options = {key.replace('.', '__'): value for key, value in TINY.items()} | options
    return train(work_dir, *RESUME, config=config, **options).wait()


def resumed_although(words: str, text: str = '', **options: object) -> Callable[[Path], Outcome]:
    """Return a case in which a run is resumed with another config, which fits."""

    def run(folder: Path) -> Outcome:
        work_dir = copy(folder)
        ended = resume_changed(work_dir, text, options)
        line = next((line for line in ended.said.splitlines() if words in line), '')
        line = line.rpartition(' - WARNING - ')[2].replace(f'{work_dir}/', '')
        return Outcome(f'goes on, and says: {line}', 'nothing', ended.status == 0 and bool(line))

    return run


SGD = (
    "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1, "
    '_delete_=True))'
)
EMA = "custom_hooks = [dict(type='EMAHook', momentum=0.01)]"
for fault, outcome in {
    'the kernel sizes': resumed_with('(8, 1, 3, 3)', model__backbone__focal_windows=5),
    'the depths': resumed_with('the checkpoint lacks', model__backbone__depths='[1,1,2,1]'),
    'frozen_stages': resumed_with('frozen now', model__backbone__frozen_stages=1),
    'the optimizer': resumed_with('AdamW in the checkpoint and SGD', SGD),
    'the optimizer, to one with states of the same names': resumed_with(
        'AdamW in the checkpoint and Adam now', optim_wrapper__optimizer__type='Adam'
    ),
    'the groups of parameters': resumed_with('groups', optim_wrapper__paramwise_cfg='None'),
    'the schedules': resumed_with(
        'parameter schedulers', "param_scheduler = [dict(type='LinearLR', start_factor=0.1, end=2)]"
    ),
}.items():
    case(CHANGED, fault)(outcome)
for fault, outcome in {
    'an average of weights is added': resumed_although('no average of weights', EMA),
    'the size of the batches': resumed_although('as another run', train_dataloader__batch_size=3),
    'the number of pictures': resumed_although(
        'as another run', train_dataloader__dataset__indices=18
    ),
    'the learning rate': resumed_although('settings that differ', optim_wrapper__optimizer__lr=0.1),
}.items():
    case(CHANGED, fault)(outcome)


@case(CHANGED, 'the number of classes')
def _(folder):
    import focal_mm.datasets.shapes

    mini = focal_mm.datasets.shapes.mini_imagenet()
    for split in ('train', 'val'):
        (folder / 'data' / split).mkdir(parents=True)
        for path in (mini / split).iterdir():
            (folder / 'data' / split / path.name).symlink_to(path)
        shutil.copytree(mini / split / 'circle', folder / 'data' / split / 'extra')
    roots = {f'{name}_dataloader__dataset__data_root': folder / 'data' for name in ('train', 'val')}
    classes = dict(model__head__num_classes=4, data_preprocessor__num_classes=4)
    return resumed_with('head.fc.weight is (3, 64)', **roots, **classes)(folder)


@case(CHANGED, 'the average of weights is removed')
def _(folder):
    work_dir = folder / 'run'
    ended = resume_changed(work_dir, EMA, dict(before=lambda: stop_after(EPOCH)))
    assert ended.status == -9, ended.said
    ended = train(work_dir, *RESUME).wait()
    good = one_line(ended) and 'EMAHook' in ended.line
    return Outcome(f'{said(ended, work_dir).partition("; resume with")[0]}', REFUSED, good)


# ---- the numbers ---------------------------------------------------------------------------------


def not_finite(inject: Callable) -> Callable[[Path], Outcome]:
    """Return a case in which a value is not finite in the eighth iteration."""

    def run(folder: Path) -> Outcome:
        work_dir = folder / 'run'
        ended = train(work_dir, before=lambda: at_iteration(7, inject)).wait()
        (file,) = work_dir.glob('nonfinite_iter_*.pt')
        looked = Command(folder / 'look.log', 'incident', file).wait()
        good = one_line(ended) and looked.status == 0 and 'largest output' in looked.said
        good = good and not any(work_dir.glob('epoch_2.pth')) and whole_after(work_dir)
        line = said(ended, work_dir).partition('; the last')[0]
        return Outcome(f'{line}', 'the iterations since the last checkpoint, which goes on', good)

    return run


def explode(runner) -> None:
    for group in runner.optim_wrapper.optimizer.param_groups:
        group['lr'] = 1e30


def overflow_in_bf16(runner) -> None:
    # On a CPU, --amp bf16 is off.
    runner.optim_wrapper.optim_context = lambda model: torch.autocast('cpu', torch.bfloat16)
    runner.model.head.loss_module.register_forward_hook(
        lambda module, inputs, loss: loss.bfloat16() * 3e38 * 3e38
    )


case(NUMBERS, 'the learning rate explodes', True)(not_finite(explode))
case(NUMBERS, 'a gradient is NaN, the loss is not')(
    not_finite(lambda run: run.model.head.fc.bias.register_hook(lambda grad: grad * float('nan')))
)
case(NUMBERS, 'a loss is infinite')(
    not_finite(
        lambda run: run.model.head.loss_module.register_forward_hook(lambda *args: args[2] / 0)
    )
)
case(NUMBERS, 'a loss is infinite in bf16 autocast')(not_finite(overflow_in_bf16))
case(NUMBERS, 'a weight is NaN')(
    not_finite(lambda run: run.model.backbone.layers[2].blocks[0].mlp.fc1.bias.data.mul_(np.nan))
)


@case(NUMBERS, 'a checkpoint whose weights are NaN is tested, loaded and resumed')
def _(folder):
    path = copy(folder) / 'epoch_2.pth'
    content = torch.load(path, weights_only=False)
    content['state_dict']['head.fc.bias'].numpy()[0] = np.nan
    torch.save(content, path)
    good = True
    for ended in (
        Command(
            folder / 'test.log',
            *('test', CONFIG, path, '--mini', '--work-dir', folder / 'test', '--cfg-options'),
            *(f'{key}={value}' for key, value in TINY.items() if key.startswith('model')),
        ).wait(),
        train(folder / 'new', load_from=path).wait(),
        train(folder / 'run', '--resume', path).wait(),
    ):
        good = good and one_line(ended) and 'head.fc.bias' in ended.line
    return Outcome(said(ended, folder / 'run'), REFUSED, good)


# ---- pictures and loaders ------------------------------------------------------------------------


def data_fault(
    words: str, act: Callable, number: int = 18, limit: float = 0, **options: object
) -> Callable[[Path], Outcome]:
    """Return a case in which loading a picture goes wrong in the second epoch."""

    def run(folder: Path) -> Outcome:
        def before() -> None:
            from focal_mm.engine import loops

            if limit:
                loops.LOADER_TIMEOUT = limit
            (folder / 'cut.jpg').write_bytes(b'\xff\xd8\xff and no more')
            at_picture(number, lambda results: act(folder, results))()

        ended = train(folder / 'run', before=before, **options).wait()
        good = one_line(ended) and words in ended.line and whole_after(folder / 'run')
        line = re.sub(r', of .*?; all', ', of (names of its pictures); all', said(ended, folder))
        return Outcome(line, 'nothing', good)

    return run


def cut(folder: Path, results: dict) -> None:
    results['img_path'] = str(folder / 'cut.jpg')


def hang(folder: Path, results: dict) -> None:
    time.sleep(3600)


case(DATA, 'a picture is cut off')(data_fault('cut.jpg cannot be read', cut))
case(DATA, 'a picture is cut off, in a worker')(
    data_fault('cut.jpg cannot be read', cut, 9, train_dataloader__num_workers=2)
)
case(DATA, 'a picture is gone')(
    data_fault('no.jpg cannot be read', lambda _, results: results.update(img_path='no.jpg'))
)
case(DATA, 'the storage hangs')(data_fault('hangs', hang, limit=3))
case(DATA, 'the storage hangs, in a worker')(
    data_fault(
        'hangs',
        hang,
        9,
        train_dataloader__num_workers=2,
        train_dataloader__timeout=5,
    )
)


@case(DATA, 'a picture is cut off, with --skip-corrupt 1')
def _(folder):
    (folder / 'cut.jpg').write_bytes(b'\xff\xd8\xff and no more')
    ended = train(
        folder / 'run',
        *('--skip-corrupt', 1),
        before=at_picture(18, lambda results: cut(folder, results)),
    ).wait()
    good = ended.status == 0 and 'cut.jpg, which cannot be read' in ended.said
    return Outcome('named, and another picture taken in its place', 'the picture', good)


@case(DATA, 'a picture of validation is cut off')
def _(folder):
    (folder / 'cut.jpg').write_bytes(b'\xff\xd8\xff and no more')
    ended = train(
        folder / 'run', before=at_picture(13, lambda results: cut(folder, results))
    ).wait()
    good = one_line(ended) and 'cut.jpg cannot be read' in ended.line
    good = good and whole_after(folder / 'run')
    return Outcome(said(ended, folder), 'nothing', good)
