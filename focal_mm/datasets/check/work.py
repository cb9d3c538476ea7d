"""Work on many files at once, with a progress bar."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

SILENCE = 2  # seconds before a progress bar appears
_BLOCK = 4096  # items that wait for a thread at a time


def parallel(
    function: Callable[[_Item], _Result], items: Sequence[_Item], label: str
) -> Iterator[_Result]:
    """Yield the results in order, from threads.

    After two seconds a progress bar appears, if standard error is a terminal.

    Args:
        function (Callable): What is done with an item.
        items (sequence): The items.
        label (str): What the progress bar calls the work.
    """
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(label, total=len(items))
    start, shown = time.monotonic(), False
    try:
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(items), _BLOCK):
                for result in pool.map(function, items[first : first + _BLOCK]):
                    yield result
                    progress.advance(task)
                    if not shown and time.monotonic() - start > SILENCE:
                        progress.start()
                        shown = True
    finally:
        progress.stop()
