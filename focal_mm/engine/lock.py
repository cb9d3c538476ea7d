"""A folder that one run at a time writes to."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = '.running'


@contextmanager
def held(folder: str) -> Iterator[None]:
    """Context in which no other process can hold a folder; it ends with the process, too.

    The main process of a run holds it for all. Storage without locks is not held.

    Args:
        folder (str): The folder.

    Raises:
        FileExistsError: If another process holds it.
    """
    path = Path(folder, NAME)
    if fcntl is None or not is_main_process() or '://' in folder:
        yield
        return
    with path.open('a+') as file:
        try:
            # Not flock: workers would inherit it, and may live for seconds after a killed process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            raise FileExistsError(
                f'{folder}: another run writes here ({file.read().strip()}); wait for its end, or '
                'choose another folder: --work-dir DIR'
            ) from error
        except OSError as error:
            print_log(f'{folder} cannot be locked ({error})', 'current')
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}')
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
