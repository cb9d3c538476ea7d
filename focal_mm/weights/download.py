"""Download of checkpoints from servers that may be slow, broken or hostile."""

import hashlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
)
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

import rich.progress
from mmengine.dist import get_rank
from mmengine.logging import print_log
from rich.console import Console

from ..cache import whole_file
from .loading import CheckpointError

# Seconds without an answer, and those in which _SLOWEST bytes have to come.
_SILENCE, _WINDOW = 20, 60
_SLOWEST = 60_000
# Bytes that may come before the content, within it between two pieces, and after it: headers, sizes
# of chunks, trailers. Python reads them without a limit.
_OVERHEAD = 4_000_000
# Bytes of the largest file that is taken from an address of which nothing is known.
LARGEST = 16_000_000_000


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to the web only, and none from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Return the request that follows a redirect."""
        fp.close()  # its content may have no end, and is read otherwise
        if urlparse(newurl).scheme not in ('https', urlparse(req.full_url).scheme):
            raise OSError(f'redirects to {newurl}, which is not followed')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Flow(io.RawIOBase):
    """Bytes of an answer as they come from a socket, within limits of speed and overhead.

    Args:
        socket (RawIOBase): Where they are read.

    Attributes:
        overhead (int): Bytes that came since the last piece of the content.
    """

    def __init__(self, socket: io.RawIOBase) -> None:
        self.socket, self.overhead = socket, 0
        self.start, self.size = time.monotonic(), 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read some bytes.

        Raises:
            OSError: If they come too slowly, or too many are no content.
        """
        count = self.socket.readinto(buffer)
        self.size += count or 0
        self.overhead += count or 0
        if self.overhead > _OVERHEAD:
            raise OSError(f'{self.overhead:,} bytes of headers or trailers came without an end')
        if time.monotonic() - self.start > _WINDOW:
            if self.size < _SLOWEST:
                raise OSError(f'only {self.size:,} bytes came in {_WINDOW} s')
            self.start, self.size = time.monotonic(), 0
        return count

    def close(self) -> None:
        """Close the socket, too."""
        self.socket.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer whose bytes are a :class:`_Flow`, the attribute ``flow``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flow = _Flow(self.fp.detach())
        self.fp = io.BufferedReader(self.flow)


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req)


def file_name(url: str) -> str:
    """Return the name under which the file of an address is kept: the end of its path.

    Raises:
        CheckpointError: If that is no name of a file within a folder.
    """
    try:
        name = os.path.basename(urlparse(url).path)
    except ValueError as error:
        raise CheckpointError(f'{url}: no address ({error})') from error
    plain = unquote(name)
    if not plain.strip('. ') or not plain.isprintable() or set(plain) & set('/\\:'):
        raise CheckpointError(
            f'{url}: the address does not end in the name of a file; download it yourself and '
            'name the local file instead'
        )
    return name


def shows_progress() -> bool:
    """Return whether this process is to draw progress bars."""
    return get_rank() == 0 and sys.stderr.isatty()


def download(
    url: str,
    path: Path,
    read: Callable[[Path], object],
    expected: str | None = None,
    largest: int = LARGEST,
) -> str:
    """Download a checkpoint; ``path`` appears once it is complete and has been read.

    Not by ``torch.hub``: it waits forever for a server that has stopped sending.

    Args:
        url (str): Its address. Proxies are taken from the environment, as everywhere in Python.
        path (Path): The new file.
        read (Callable): Reads the file, or raises a CheckpointError.
        expected (str, optional): Its published sha256.
        largest (int): Bytes that the file may have. Default: :data:`LARGEST`.

    Returns:
        str: Its sha256.

    Raises:
        OSError: If the download fails, or is no such checkpoint.
    """
    print_log(f'Downloading: "{url}" to {path}', logger='current')
    request = Request(url, headers={'User-Agent': 'torch.hub'})
    with whole_file(path) as part:
        try:
            with build_opener(_Http, _Https, _Redirects).open(
                request, timeout=_SILENCE
            ) as response:
                sha256 = _write(response, part, largest)
        except HTTPError as error:
            raise OSError(f'HTTP Error {error.code}: {error.reason}') from error
        except (HTTPException, ValueError) as error:  # an odd answer, an odd address
            raise OSError(f'{type(error).__name__}: {error}') from error
        if expected and sha256 != expected:
            raise OSError(f'its sha256 is {sha256}, not the published {expected}')
        try:
            read(part)
        except CheckpointError as error:
            reason = str(error).removeprefix(f'{part}: ').removesuffix('; get the file again')
            raise OSError(f'{reason}{_first_line(part)}') from error
    return sha256


def _write(response: _Answer, path: Path, largest: int) -> str:
    """Write an answer to a file, and return its sha256."""
    total = response.length  # None: the server does not say, or not in numbers
    free = shutil.disk_usage(path.parent).free
    for limit, reason in ((largest, 'any such file has'), (free, 'the disk has space for')):
        if total is not None and total > limit:
            raise OSError(f'it has {total:,} bytes, more than {reason} ({limit:,})')
    sha256, size = hashlib.sha256(), 0
    with (
        rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.DownloadColumn(),
            console=Console(stderr=True),
            disable=not shows_progress(),
        ) as progress,
        path.open('wb') as file,
    ):
        task = progress.add_task(path.name.partition('.')[0], total=total)
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
            response.flow.overhead = 0
            progress.update(task, completed=size)
            if size > largest:
                raise OSError(f'it does not end after {size:,} bytes, more than any such file has')
    if total is not None and size != total:
        raise OSError(f'cut off after {size} of {total} bytes')
    return sha256.hexdigest()


def _first_line(path: Path) -> str:
    """Return the start of a text, such as a page or an error in JSON, for an error message."""
    with path.open('rb') as file:
        line = file.read(60).split(b'\n')[0].strip()
    text = line.decode('ascii', 'replace')
    return f': {text!r}' if text.isprintable() and '\ufffd' not in text else ''
