"""What a migration has to tell its user."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Settings that differ from the old file's, and those that are missing in the new one.

    Attributes:
        changes (list[str]): Sentences about settings that the new config has in another form than
            a plain translation.
        unknown (list[tuple[str, Any]]): Keys and values of the old file that have no translation.
            They are not in the new config.
    """

    changes: list[str] = field(default_factory=list)
    unknown: list[tuple[str, Any]] = field(default_factory=list)

    def change(self, text: str) -> None:
        """Add a sentence, once."""
        if text not in self.changes:
            self.changes.append(text)

    def leave_out(self, path: str, settings: dict[str, Any]) -> None:
        """Add settings that have no translation.

        Args:
            path (str): Key of the dict that they come from, ``''`` for the file itself.
            settings (dict): The settings; none are fine.
        """
        for key, value in settings.items():
            entry = (f'{path}.{key}' if path else key, value)
            if entry not in self.unknown:
                self.unknown.append(entry)
