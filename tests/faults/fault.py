"""What a case of the benchmark of faults is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """What came of a fault.

    Attributes:
        happened (str): What was said, or done.
        lost (str): What was lost by it.
        survived (bool): Whether nothing was lost but what the table says, and nothing was silent.
    """

    happened: str
    lost: str
    survived: bool


@dataclass(frozen=True)
class Case:
    """A fault and what injects it.

    Attributes:
        part (str): Heading in the table.
        fault (str): What is injected.
        run (Callable): Injects it, in an empty folder of its own.
        quick (bool): Whether the tests run it, too.
    """

    part: str
    fault: str
    run: Callable[[Path], Outcome]
    quick: bool = False


CASES: list[Case] = []


def case(part: str, fault: str, quick: bool = False) -> Callable:
    """Return a decorator that adds a function to the table."""

    def add(run: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
        CASES.append(Case(part, fault, run, quick))
        return run

    return add
