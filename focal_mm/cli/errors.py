"""Errors of the user, reported in one line."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Print an error that focal_mm raises in one line and exit with status 2.

    The message of each such error says in one line what is wrong and what to do. A registry of
    OpenMMLab may have wrapped the error. Any other error keeps its traceback.

    Args:
        command (str): What the line begins with.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _is_raised_by_us(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        print(f'{command}: error: {cause.args[-1]}', file=sys.stderr)
        sys.exit(2)


def _is_raised_by_us(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return (
        len(frames) > 0
        and (frames[-1].line or '').startswith('raise ')
        and Path(frames[-1].filename).is_relative_to(PACKAGE)
    )
