"""Files that appear whole or not at all, and finding the newest whole checkpoint of a run."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

from mmengine.fileio import LocalBackend, register_backend
from mmengine.runner import CheckpointLoader

from ..weights import CheckpointError, unpickling

# What a file is called while it is written; no pattern for checkpoints finds it.
PART = '.part'
# The backend of mmengine that writes checkpoints.
BACKEND = 'focal_mm.durable'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK = 1 << 24


class NoSpaceError(OSError):
    """Error: there is no space for a file; what was there before still is."""


def write_whole(data: bytes, path: str | Path) -> None:
    """Write a file so that it is whole at any time, the old one or the new one.

    It is written beside, synced to the disk, read back and renamed.

    Args:
        data (bytes): Content.
        path (str or Path): The file; its folder is made.

    Raises:
        NoSpaceError: If the disk is full.
        OSError: If it can't be written, or is read back differently.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, 'posix_fadvise'):  # read from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not _has_content(part, data):
            raise OSError(f'{path} is read back differently than written; check the disk')
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        missing = max(len(data) - free, 0)
        raise NoSpaceError(
            f'no space for {path}: it needs {_readable(len(data))} and {_readable(free)} are '
            f'free, so {_readable(missing)} are missing'
            + ('' if missing else ' (a quota or a limit may be lower than the disk)')
        ) from error
    _sync_folder(path.parent)


def _has_content(path: Path, data: bytes) -> bool:
    with path.open('rb') as file:
        for start in range(0, len(data), _CHUNK):
            if file.read(_CHUNK) != data[start : start + _CHUNK]:
                return False
        return file.read(1) == b''


def _readable(size: int) -> str:
    return f'{size / 1e6:,.1f} MB' if size >= 1e6 else f'{size / 1e3:,.1f} kB'


def _sync_folder(folder: Path) -> None:
    """Sync the entries of a folder, without which a power failure could undo a renaming."""
    if os.name == 'nt':  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DurableBackend(LocalBackend):
    """mmengine's backend of local files, which writes by :func:`write_whole`.

    Args:
        problems (list[str]): Takes the message when the disk is full, since only one process
            writes, and all of them have to stop or go on.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file."""
        try:
            write_whole(obj, filepath)
        except NoSpaceError as error:
            self.problems.append(str(error))


register_backend(BACKEND, DurableBackend, force=True)


# ---- reading -----------------------------------------------------------------------------------


def peek(path: str | Path) -> Any:
    """Read a checkpoint without its tensors, which are read from the file where they are used.

    Args:
        path (str or Path): A file, or anything else that mmengine loads.

    Raises:
        CheckpointError: If it can't be read.
        FileNotFoundError: If there is no such file.
    """
    if Path(path).is_file() and is_zipfile(path):
        try:
            return unpickling.load(Path(path), 'cpu', mmap=True)
        except Exception:  # damaged, trusted or refused: the reader below says which
            pass
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')


def is_resumable(content: Any) -> bool:
    """Return whether the content of a checkpoint is the state of a run, not of a network alone."""
    return isinstance(content, dict) and 'iter' in (content.get('meta') or {})


def check_whole(path: str | Path) -> None:
    """Raise a CheckpointError if a checkpoint is not what was written.

    The sums of all its parts are checked, then it is read.
    """
    path = Path(path)
    if is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                damaged = archive.testzip()
        except (BadZipFile, EOFError, OSError, RuntimeError) as error:
            raise CheckpointError(f'{path}: damaged ({error})') from error
        if damaged:
            raise CheckpointError(f'{path}: damaged (the sum of {damaged} is wrong)')
    CheckpointLoader.load_checkpoint(str(path), 'cpu')


class Found(NamedTuple):
    """Result of :func:`find_newest`.

    Attributes:
        path (str or None): The newest whole checkpoint.
        broken (list[str]): For each newer one that is broken, its name and what is wrong.
    """

    path: str | None
    broken: list[str]


def find_newest(work_dir: str | Path, *others: str | Path) -> Found:
    """Find the checkpoint of a work folder from which a run is to go on.

    Only what the files contain counts, not their names and dates, so that a folder may have been
    moved or copied, and ``last_checkpoint`` may be lost. Files without an optimizer, as those of
    the best epochs, are only taken if there is nothing else.

    Args:
        work_dir (str or Path): The folder. Only if there is no checkpoint in any of the folders,
            what ``last_checkpoint`` in it names counts: a remote file, or the folder of a file.
        *others (str or Path): Other folders that the run saves in.

    Raises:
        CheckpointError: If a file would have to run code to be read.
    """
    files = _files_of(Path(work_dir), *map(Path, others))
    named = Path(work_dir, 'last_checkpoint')
    if not files and named.is_file():
        text = named.read_text(errors='replace').strip().partition('\n')[0]
        if '://' in text:
            return Found(text, [])
        if text.endswith('.pth') and Path(text).is_file():
            files = _files_of(Path(text).parent)
    candidates, broken = [], []
    for path in files.values():
        try:
            content = peek(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, unpickling.RefusedError):
                raise
            broken.append((path.stat().st_mtime, str(error)))
            continue
        if is_resumable(content):
            meta = content['meta']
            candidates.append(('optimizer' in content, meta['iter'], meta.get('epoch', 0), path))
    for *_, path in sorted(candidates, reverse=True):
        try:
            check_whole(path)
        except CheckpointError as error:
            broken.append((path.stat().st_mtime, str(error)))
        else:
            return Found(str(path), [message for _, message in sorted(broken)])
    return Found(None, [message for _, message in sorted(broken)])


def _files_of(*folders: Path) -> dict[Path, Path]:
    return {path.resolve(): path for folder in folders for path in sorted(folder.glob('*.pth'))}
