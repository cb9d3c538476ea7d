"""What went wrong in a data loader, in one line."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmengine.runner import Runner

from .skip_corrupt import CorruptPictureError

# Seconds after which a loader that gives no batch has hung: less than the ten minutes after which
# the other processes of a run give up waiting for this one.
LOADER_TIMEOUT = 540

# Seconds within which the system tells of a process's death after closing its sockets.
_DEATH = 2


class LoaderError(RuntimeError):
    """Error: a data loader has hung, a worker of it has died, or a picture cannot be read."""


class _RungError(BaseException):
    """Error that nothing between the loader and the alarm takes for one of a picture."""


@contextmanager
def explained_loaders(runner: Runner) -> Iterator[None]:
    """Context that turns errors of data loaders and their workers into a :class:`LoaderError`.

    Args:
        runner (Runner): The runner; where its training loop is one of ours, what it knows of the
            batch and of the last checkpoint is added.
    """
    try:
        with named_deaths():
            yield
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        loop = runner._train_loop
        if getattr(loop, 'failed', False) and not isinstance(error, CorruptPictureError):
            message += f'; {loop.awaited()}'
        if getattr(loop, 'saved', None):
            message += f'; all until then is in {loop.saved}: --resume auto goes on'
        elif last := runner.message_hub.runtime_info.get('last_ckpt'):
            message += f'; the last checkpoint is {last}: --resume auto goes on'
        raise LoaderError(message) from error


def _explain(error: Exception) -> str | None:
    text = str(error)
    if isinstance(error, CorruptPictureError):
        # From a worker, this is preceded by its traceback.
        return text.rpartition(f'{CorruptPictureError.__name__}: ')[2].strip()
    if not isinstance(error, RuntimeError) or text.startswith('Caught '):
        return None
    if found := re.match(r'DataLoader timed out after ([\d.]+) seconds', text):
        return f'the data loader hangs: no batch for {float(found[1]):g} seconds'
    if found := re.match(r'DataLoader worker .* is killed by signal: ([^.]*)', text):
        cause = {
            'Killed': ', as systems do when memory is short: fewer train_dataloader.num_workers '
            'need less',
            'Bus error': ', for which shared memory is too small: enlarge /dev/shm, or set '
            'train_dataloader.num_workers=0',
        }.get(found[1], '')
        return f'a worker of a data loader has died ({found[1]}){cause}'
    if re.match(r'DataLoader worker .* exited unexpectedly', text):
        return (
            'a worker of a data loader has died: killed for its memory, or of an error that '
            'num_workers=0 shows'
        )
    return None


@contextmanager
def named_deaths() -> Iterator[None]:
    """Context in which the death of a worker is an error of PyTorch's handler of SIGCHLD, also
    where the sockets that the dying worker closed fail first.
    """
    try:
        yield
    except (EOFError, OSError):
        time.sleep(_DEATH)  # the handler raises its error here, and cannot while a run is saved
        raise


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Context that raises after a time, for a loader without workers, which has no timeout.

    Does nothing in a thread, which gets no signals, and on Windows.

    Args:
        seconds (float): The time.
    """
    thread = threading.current_thread() is not threading.main_thread()
    if thread or not hasattr(signal, 'SIGALRM'):  # Windows
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _RungError(f'no batch for {seconds} seconds')

    old: Any = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _RungError:
        # In the words of PyTorch's loader.
        raise RuntimeError(f'DataLoader timed out after {seconds} seconds') from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
