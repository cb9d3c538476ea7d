"""Errors of the user, reported in one line."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..messages import printable

PACKAGE = Path(__file__).parents[1]


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print an error of the user in one line and exit with status 2.

    These are the errors that focal_mm raises, whose message says in one line what is wrong and what
    to do, and those of the system about a file: missing, without rights, on a full disk. A registry
    of OpenMMLab may have wrapped the error. Any other error keeps its traceback.

    Args:
        command (str): What the line begins with.
    """
    try:
        yield
    except Exception as error:
        messages = [_message(cause) for cause in _causes(error)]
        message = next(filter(None, messages), None)
        if message is None or isinstance(error, BrokenPipeError):
            raise
        print(f'{command}: error: {printable(message)}', file=sys.stderr)
        sys.exit(2)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _message(error: BaseException) -> str | None:
    if _is_raised_by_us(error):
        return str(error.args[-1])
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f'{os.fspath(error.filename)}: {error.strerror}'
    return None


def _is_raised_by_us(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return (
        len(frames) > 0
        and (frames[-1].line or '').startswith('raise ')
        and Path(frames[-1].filename).is_relative_to(PACKAGE)
    )
