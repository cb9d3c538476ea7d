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
_BLOCK = 16  # items that a thread takes at a time
_WAITING = 256  # blocks that wait for a thread


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
    blocks = [items[first : first + _BLOCK] for first in range(0, len(items), _BLOCK)]

    def work(block: Sequence[_Item]) -> list[_Result]:
        return [function(item) for item in block]

    try:
        with ThreadPoolExecutor() as pool:
            for first in range(0, len(blocks), _WAITING):
                for results in pool.map(work, blocks[first : first + _WAITING]):
                    yield from results
                    progress.advance(task, len(results))
                    if not shown and time.monotonic() - start > SILENCE:
                        progress.start()
                        shown = True
    finally:
        progress.stop()
