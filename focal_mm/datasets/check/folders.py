"""Pictures for classification: a folder for each class, or a list of pictures and labels."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from .label_maps import files_below
from .pictures import Checked, Reading, check_pictures
from .report import Report

_READING = Reading(boxes=False)


@dataclass(frozen=True)
class ClassFolder:
    """A folder with a subfolder of pictures for each class, as ImageNet's.

    Attributes:
        folder (Path): The folder.
        suffixes (tuple[str]): How the names of pictures end, in lower case.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Default: ``'train'``.
        reading (Reading): How training reads the pictures.
    """

    folder: Path
    suffixes: tuple[str, ...]
    role: str = 'train'
    reading: Reading = _READING

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the folders and pictures.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode every picture. Default: open 500, spread evenly.

        Returns:
            Checked: The pictures, and the classes in the order of their labels.
        """
        folder = self.folder
        if not folder.is_dir():
            report.error(folder, 'no such folder')
            return Checked()
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if not classes:
            report.error(folder, 'no folder of a class')
        counts = Counter(dict.fromkeys(classes, 0))
        pictures: dict[str, Path] = {}
        unused: list[str] = []
        for name in files_below(folder):
            own, slash, _ = name.partition('/')
            if not slash or not name.lower().endswith(self.suffixes):
                unused.append(name)
                continue
            counts[own] += 1
            pictures[name] = folder / name
        empty = [name for name in classes if not counts[name]]
        if empty:
            level = 'error' if self.role == 'train' else 'warning'
            report.add(level, folder, 'class without pictures', empty)
        if unused:
            report.add('warning', folder, 'file that is not used, being no picture', unused)
        unusable = check_pictures(folder, pictures, report, thorough, reading=self.reading)
        report.looked_at.append(f'{folder}: {len(pictures)} pictures of {len(classes)} classes')
        labels = {name: label for label, name in enumerate(classes)}
        lines = {name: f'{name} {labels[name.partition("/")[0]]}' for name in pictures}
        return Checked(pictures, unusable, lines, classes)


@dataclass(frozen=True)
class LabelList:
    """A list of pictures, each with the number of its class.

    Attributes:
        file (Path): The list.
        folder (Path): What its names are relative to.
        classes (int, optional): Number of classes. Default: not known.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Default: ``'train'``.
        with_label (bool): Whether lines have a label. Default: True.
        reading (Reading): How training reads the pictures.
    """

    file: Path
    folder: Path
    classes: int | None = None
    role: str = 'train'
    with_label: bool = True
    reading: Reading = _READING

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the list and its pictures.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode every picture. Default: open 500, spread evenly.

        Returns:
            Checked: The pictures.
        """
        try:
            text = self.file.read_bytes().decode('utf-8')
        except (OSError, UnicodeDecodeError) as error:
            report.error(self.file, f'cannot be read as UTF-8: {" ".join(str(error).split())}')
            return Checked()
        if text.startswith('\ufeff'):
            report.error(self.file, 'begins with a byte order mark, which the first name takes')
            text = text.removeprefix('\ufeff')
        faults: dict[str, list[str]] = defaultdict(list)
        labels: dict[str, int] = {}
        lines = text.split('\n')
        for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
            name, label, fault = self._parse(line)
            if not fault and name in labels:
                same = labels[name] == label
                fault = f'picture that is listed twice{"" if same else ", with other labels"}'
            if fault:
                faults[fault].append(f'line {number} ({line.strip()[:60]})')
            if not fault or 'beyond' in fault:
                labels[name] = label
        for fault, places in faults.items():
            level = 'warning' if fault.endswith('twice') else 'error'
            report.add(level, self.file, fault, places)
        if not labels:
            report.error(self.file, 'no pictures')
        if self.classes is not None and self.with_label and self.role == 'train':
            lacking = [
                f'label {one}' for one in sorted({*range(self.classes)} - {*labels.values()})
            ]
            if lacking:
                report.add('warning', self.file, 'class without examples', lacking)
        pictures = {name: self.folder / name for name in labels}
        unusable = check_pictures(self.folder, pictures, report, thorough, reading=self.reading)
        beyond = {
            name: 'label beyond the classes'
            for name, label in labels.items()
            if self.classes is not None and not 0 <= label < self.classes
        }
        report.looked_at.append(f'{self.file}: {len(pictures)} pictures')
        kept = {
            name: f'{name} {label}' if self.with_label else name for name, label in labels.items()
        }
        return Checked(pictures, beyond | unusable, kept)

    def _parse(self, line: str) -> tuple[str, int, str]:
        """Return name, label and fault of a line."""
        line = line.strip()
        if not line:
            return '', 0, 'empty line'
        if not self.with_label:
            return line, 0, ''
        name, _, word = line.rpartition(' ')
        if not name:
            return '', 0, 'line without a label after a blank'
        try:
            label = int(word)
        except ValueError:
            return '', 0, 'label that is no whole number'
        if label < 0 or (self.classes is not None and label >= self.classes):
            limit = '' if self.classes is None else f' {self.classes}'
            return name, label, f'label beyond the{limit} classes'
        return name, label, ''
