"""The command ``focal-mm`` in processes of their own, which can be killed.

They are forked from this one, which has imported what they need; a new interpreter would import
for ten seconds each time. So nothing may start threads here: no tensor is computed with.
"""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

CONFIG = 'focal_mm::imagenet/focalnet_t.py'
CONFIGS = (CONFIG, 'focal_mm::mask_rcnn/focalnet_t_1x.py', 'focal_mm::upernet/focalnet_t.py')
# A classifier that takes 20 ms an iteration, 6 iterations an epoch, with everything random that
# its recipe has: drop path, mixup, random crops and erasing.
TINY = {
    'model.backbone.embed_dims': 8,
    'model.backbone.depths': '[1,1,1,1]',
    'model.head.in_channels': 64,
    'train_dataloader.batch_size': 2,
    'train_dataloader.dataset.indices': 12,
    'train_dataloader.dataset.pipeline.1.scale': 48,
    'val_dataloader.dataset.indices': 4,
    'val_dataloader.dataset.pipeline.1.scale': 52,
    'val_dataloader.dataset.pipeline.2.crop_size': 48,
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.checkpoint.save_best': 'auto',
    'default_hooks.logger.interval': 1,
    'randomness.seed': 1,
}


class Ended(NamedTuple):
    """How a command has ended.

    Attributes:
        status (int): The exit status; the negative number of the signal that has killed it.
        said (str): What it has written to stdout and stderr.
    """

    status: int
    said: str

    @property
    def line(self) -> str:
        """The line with the error; the last line if there is none."""
        lines = self.said.strip().splitlines() or ['']
        return next((line for line in reversed(lines) if ': error: ' in line), lines[-1])


class Command:
    """A running command.

    Args:
        log (Path): File for what it says.
        *words (str): The command line.
        before (Callable, optional): Is called in the process before the command, to inject a fault.
    """

    def __init__(
        self, log: Path, *words: object, before: Callable[[], object] | None = None
    ) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(log, [str(word) for word in words], before))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill_after(self, seconds: float) -> None:
        """Send SIGKILL once the process has computed for a time, whatever else the machine does."""
        ticks = os.sysconf('SC_CLK_TCK')
        while True:
            fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
            if fields[0] == 'Z' or (int(fields[11]) + int(fields[12])) / ticks >= seconds:
                break
            time.sleep(0.002)
        self.kill()

    def wait(self, limit: float = 300) -> Ended:
        """Wait for the end; after ``limit`` seconds the process is killed."""
        start = time.monotonic()
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - start > limit:
                self.kill()
            time.sleep(0.01)
        return Ended(os.waitstatus_to_exitcode(status), self.log.read_text(errors='replace'))


def _run(log: Path, words: list[str], before: Callable[[], object] | None) -> int:
    """Run a command in the forked process; return its exit status."""
    from focal_mm.cli.main import main
    from focal_mm.engine import skip_corrupt

    os.setsid()
    skip_corrupt._skipped.value = 0  # processes that are forked share it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (open(number, 'w', 1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ['focal-mm', *words]
    try:
        if before:
            before()
        main()
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


def prepare() -> None:
    """Import what the commands need, and read the config once."""
    import focal_mm

    focal_mm.set_up()
    for library in ('mmpretrain', 'mmdet', 'mmseg'):
        for part in ('models', 'datasets', 'engine', 'evaluation', 'structures', 'visualization'):
            import_module(f'{library}.{part}')
    import focal_mm.datasets
    import focal_mm.engine
    from focal_mm.cli.runner import load_config

    for config in CONFIGS:
        load_config(config)


def train(folder: Path, *words: object, config: object = CONFIG, before=None, **options) -> Command:
    """Start the training of the tiny classifier in a work folder.

    Args:
        folder (Path): The work folder; what is said is in a file beside it.
        *words (object): Further words of the command line.
        config (object): Another config.
        before (Callable, optional): See :class:`Command`.
        **options (object): Settings of the config, with ``__`` in place of dots.
    """
    settings = (TINY if config == CONFIG else {}) | {
        key.replace('__', '.'): value for key, value in options.items()
    }
    return Command(
        folder.with_name(f'{folder.name}.log'),
        *('train', config, '--mini', '--work-dir', folder, *words),
        *('--cfg-options', *(f'{key}={value}' for key, value in settings.items())),
        before=before,
    )
