"""Cache folder of the package, and files that appear only when they are complete."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Return ``$FOCAL_MM_CACHE``, ``$XDG_CACHE_HOME/focal_mm`` or ``~/.cache/focal_mm``."""
    default = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')) / 'focal_mm'
    return Path(os.environ.get('FOCAL_MM_CACHE', default)).expanduser()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; the file is moved to ``path`` afterwards.

    If the block raises an error, the file is deleted, and ``path`` is not changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{uuid.uuid4().hex}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
