"""What a command prints: tables, progress, and less of the libraries' noise."""

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

from ..messages import printable

Item = TypeVar('Item')

SECONDS_PER_LINE = 30  # between two lines of progress where stderr is not a terminal


def print_json(content: Any) -> None:
    """Print a value as JSON; paths are strings."""
    print(json.dumps(content, indent=2, ensure_ascii=False, default=str))


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: framed on a terminal, otherwise in plain columns of their full width.

    Args:
        header (sequence of str): Names of the columns.
        rows (iterable of sequences): Cells of each row; numbers are aligned to the right, and
            control characters, which may come from a file of anybody, are escaped.
    """
    rows = [list(row) for row in rows]
    numeric = [
        any(isinstance(row[i], (int, float)) for row in rows)
        and all(isinstance(row[i], (int, float)) or row[i] == '' for row in rows)
        for i in range(len(header))
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name, right in zip(header, numeric):
            table.add_column(name, justify='right' if right else 'left', overflow='fold')
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        Console().print(table)
        return
    lines = [list(header), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric)
        )
        print('  '.join(cells).rstrip())


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield items while stderr shows how many are done and how long the rest takes.

    On a terminal this is a progress bar; otherwise a line every :data:`SECONDS_PER_LINE`.

    Args:
        items (iterable): The work.
        description (str): What the items are.
        total (int, optional): Number of items. Default: their length, or unknown.
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as progress_bar

        yield from progress_bar(
            items, description, total=total, console=Console(stderr=True), transient=True
        )
        return
    start = said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said > SECONDS_PER_LINE:
            said = now
            left = (now - start) / count * (total - count) if total else None
            print(
                f'{description}: {count}{f" of {total}" if total else ""}'
                + (f', {timedelta(seconds=round(left))} left' if left is not None else ''),
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings and messages of the libraries off the terminal, and stdout for the result.

    For commands that load a model: inferencers warn that they have got no weights yet, and
    exporters of each operator that they write in a newer version.
    """
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep two kinds of mmengine's messages from a command's terminal and log file.

    These are debugging messages without a logger, which ``print_log`` prints whatever their level
    ("Could not import OneDL" at the import of each library of the OneDL stack), and the list of how
    each parameter was initialized.
    """
    import mmengine.logging
    from mmengine.model import BaseModule

    print_log, dump_init_info = mmengine.logging.print_log, BaseModule._dump_init_info

    @wraps(print_log)
    def print_above_debug(msg: Any, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            print_log(msg, logger, level)

    mmengine.logging.print_log = print_above_debug
    BaseModule._dump_init_info = lambda self: None
    try:
        yield
    finally:
        mmengine.logging.print_log = print_log
        BaseModule._dump_init_info = dump_init_info
