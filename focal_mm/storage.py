"""mmengine's file backend for object storage, by fsspec: ``s3://``, ``gs://`` and others."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.fileio import BaseStorageBackend, register_backend

NAME = 'fsspec'
PREFIXES = ('gs', 'gcs', 'az', 'abfs')


class FsspecBackend(BaseStorageBackend):
    """mmengine's file backend that reads whatever fsspec reads.

    Args:
        **options: Options of the file system, as ``endpoint_url`` or ``anon`` of ``s3://``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def _find(self, path: Any) -> tuple[Any, str]:
        """Return the file system of an address, and the path there.

        Raises:
            ModuleNotFoundError: If a package is missing that its protocol needs.
        """
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(str(path), **self.options)
        except ImportError as error:
            protocol = str(path).partition('://')[0]
            package = dict(s3='s3fs', gs='gcsfs', gcs='gcsfs').get(protocol, 'adlfs')
            raise ModuleNotFoundError(
                f'{path}: {protocol}:// needs a package: pip install {package}'
            ) from error

    def get(self, filepath: Any) -> bytes:
        """Return the bytes of a file."""
        files, path = self._find(filepath)
        return files.cat_file(path)

    def get_text(self, filepath: Any, encoding: str = 'utf-8') -> str:
        """Return the text of a file."""
        return self.get(filepath).decode(encoding)

    def exists(self, filepath: Any) -> bool:
        """Return whether there is such a file or folder."""
        files, path = self._find(filepath)
        return files.exists(path)

    def isfile(self, filepath: Any) -> bool:
        """Return whether there is such a file."""
        files, path = self._find(filepath)
        return files.isfile(path)

    def isdir(self, filepath: Any) -> bool:
        """Return whether there is such a folder."""
        files, path = self._find(filepath)
        return files.isdir(path)

    def join_path(self, filepath: Any, *filepaths: Any) -> str:
        """Join the parts of an address."""
        parts = [str(filepath).rstrip('/'), *(str(part).strip('/') for part in filepaths)]
        return '/'.join(filter(None, parts))

    @contextmanager
    def get_local_path(self, filepath: Any) -> Iterator[str]:
        """Context with a copy of a file on this machine."""
        with TemporaryDirectory() as folder:
            path = Path(folder, str(filepath).rpartition('/')[2])
            path.write_bytes(self.get(filepath))
            yield str(path)

    def list_dir_or_file(
        self,
        dir_path: Any,
        list_dir: bool = True,
        list_file: bool = True,
        suffix: str | tuple[str, ...] | None = None,
        recursive: bool = False,
    ) -> Iterator[str]:
        """Yield the folders and files below a folder, relative to it, as ``LocalBackend`` does."""
        files, root = self._find(dir_path)
        found = files.find(root, maxdepth=None if recursive else 1, withdirs=True, detail=True)
        for path, info in sorted(found.items()):
            name = path[len(root) :].strip('/')
            hidden = not name or name.rpartition('/')[2].startswith('.')
            if info['type'] == 'directory':
                if list_dir and not hidden:
                    yield name
            elif list_file and not hidden and name.endswith(suffix or ''):
                yield name


def register() -> None:
    """Register the backend; calling again changes nothing."""
    # mmengine gives s3:// to petrel's client, which is not public.
    s3 = () if find_spec('petrel_client') else ('s3',)
    register_backend(NAME, FsspecBackend, force=True, prefixes=[*PREFIXES, *s3])
