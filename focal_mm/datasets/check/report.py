"""What a check has found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...messages import printable as escaped

EXAMPLES = 5  # of each fault that are kept
LEVELS = ('error', 'warning', 'note')


@dataclass
class Finding:
    """A fault, and where it was found.

    Attributes:
        level (str): ``'error'`` if training fails, or learns something else than the data says;
            ``'warning'`` if something is lost; ``'note'`` if there is nothing to mend.
        file (str): The file or folder.
        fault (str): What is wrong.
        count (int): How often.
        examples (list[str]): The first places: ids, names of pictures.
    """

    level: str
    file: str
    fault: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """How often, what, and where."""
        where = ', '.join(self.examples)
        more = ', ...' if self.count > len(self.examples) > 0 else ''
        times = f'{self.count} x ' if self.count > 1 else ''
        return f'{times}{self.fault}' + (where and f': {where}{more}')

    def __str__(self) -> str:
        return f'{self.level}: {self.file}: {self.summary}'


@dataclass
class Copy:
    """A cleaned copy.

    Attributes:
        source (str): What was cleaned.
        file (str): The copy.
        left_out_file (str): The list of what was left out.
        left_out (int): Number of pictures and annotations that were.
        changed (int): Number of records that were mended.
        remaining (list[str]): Errors that no copy can mend.
    """

    source: str
    file: str
    left_out_file: str
    left_out: int
    changed: int
    remaining: list[str] = field(default_factory=list)


class Report:
    """What a check found, what it looked at, and the cleaned copies that it wrote."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str, str], Finding] = {}
        self.looked_at: list[str] = []
        self.copies: list[Copy] = []

    def error(self, file: Any, fault: str, where: str = '') -> None:
        """Note an error, with a place if the file alone does not say it."""
        self.add('error', file, fault, [where] if where else [])

    def warning(self, file: Any, fault: str, where: str = '') -> None:
        """Note a warning."""
        self.add('warning', file, fault, [where] if where else [])

    def add(
        self, level: str, file: Any, fault: str, places: Sequence[str], count: int | None = None
    ) -> None:
        """Note a fault that was found in several places.

        Args:
            level (str): ``'error'``, ``'warning'`` or ``'note'``.
            file (Any): The file or folder.
            fault (str): What is wrong.
            places (sequence of str): The first places.
            count (int, optional): Number of places. Default: as many as are given, at least 1.
        """
        key = (level, printable(str(file)), fault)
        finding = self._findings.setdefault(key, Finding(*key))
        finding.count += max(1, len(places)) if count is None else count
        left = EXAMPLES - len(finding.examples)
        finding.examples += [printable(place) for place in places[:left]]

    def merge(self, other: 'Report', again: bool = False) -> None:
        """Add the findings of another report.

        Args:
            other (Report): The other report.
            again (bool): Whether it is of data that this report has seen already, so that a fault
                in both is one. Default: False.
        """
        for key, finding in other._findings.items():
            own = self._findings.setdefault(key, Finding(*key))
            own.count = max(own.count, finding.count) if again else own.count + finding.count
            new = [one for one in finding.examples if one not in own.examples]
            own.examples += new[: EXAMPLES - len(own.examples)]
        self.looked_at += [line for line in other.looked_at if line not in self.looked_at]

    @property
    def findings(self) -> list[Finding]:
        """The findings, errors first."""
        return sorted(self._findings.values(), key=lambda finding: LEVELS.index(finding.level))

    @property
    def errors(self) -> int:
        """Number of kinds of errors."""
        return sum(finding.level == 'error' for finding in self._findings.values())

    @property
    def warnings(self) -> int:
        """Number of kinds of warnings."""
        return sum(finding.level == 'warning' for finding in self._findings.values())


def printable(text: str, length: int = 200) -> str:
    """Return a text from an unknown file as it can be printed.

    Control characters, which may command a terminal, and lone surrogates are escaped; a long text
    is cut.
    """
    return escaped(f'{text[:length]}...' if len(text) > length else text)
