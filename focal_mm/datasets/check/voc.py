"""The layout of Pascal VOC, as mmdet reads it: a list, and an XML file for each picture."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .label_maps import read_list
from .pictures import Checked, Reading, check_pictures
from .report import Report
from .work import parallel

_LARGEST = 50 << 20  # bytes of an XML file that is parsed


@dataclass(frozen=True)
class VocFiles:
    """A list of names, each of a picture and an XML file.

    Attributes:
        file (Path): The list.
        images (Path): Folder of the pictures, ``NAME.jpg``.
        annotations (Path): Folder of the XML files.
        classes (tuple[str]): The classes.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Default: ``'train'``.
        reading (Reading): How training reads the pictures.
    """

    file: Path
    images: Path
    annotations: Path
    classes: tuple[str, ...]
    role: str = 'train'
    reading: Reading = field(default_factory=Reading)

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the list, all XML files and the pictures.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode every picture. Default: open 500, spread evenly.

        Returns:
            Checked: The pictures.
        """
        for folder in (self.images, self.annotations):
            if not folder.is_dir():
                report.error(folder, 'no such folder')
                return Checked()
        names = read_list(self.file, report)
        two = [name for name in names if name.split()[-1] in ('1', '-1', '0') and ' ' in name]
        if two and len(two) == len(names):
            text = 'list of one class, with a second column that is read as part of the names'
            report.add('error', self.file, text, two)
            return Checked()
        if not names:
            report.error(self.file, 'no names')
        pictures = {name: self.images / f'{name}.jpg' for name in names}
        sizes: dict[str, tuple[float, float]] = {}
        unusable: dict[str, str] = {}
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        count: Counter[str] = Counter()
        for name, parsed in zip(names, parallel(self._read, names, f'{self.file.name}: XML')):
            if isinstance(parsed, str):
                unusable[name] = parsed
                found['error', parsed].append(f'{name}.xml')
                continue
            size, faults, classes = parsed
            count.update(classes)
            if size is not None:
                sizes[name] = size
            for level, text, place in faults:
                found[level, text].append(f'{name}.xml{place and f" ({place})"}')
                if level == 'error':
                    unusable[name] = text
        for (level, text), places in found.items():
            report.add(level, self.annotations, text, places)
        if self.role != 'test' and names and not count:
            report.error(self.file, 'no object that can be trained on or evaluated')
        elif self.role == 'train':
            for one in self.classes:
                if not count[one]:
                    report.warning(self.file, 'class without examples', one)
        unusable |= check_pictures(
            self.images, pictures, report, thorough, sizes, self.annotations, self.reading
        )
        report.looked_at.append(f'{self.file}: {len(names)} pictures, {count.total()} objects')
        return Checked(pictures, unusable, {name: name for name in names})

    def _read(
        self, name: str
    ) -> tuple[tuple[float, float] | None, list[tuple[str, str, str]], list[str]] | str:
        """Return size, faults and classes of an XML file, or why it cannot be read."""
        path = self.annotations / f'{name}.xml'
        try:
            if path.stat().st_size > _LARGEST:
                return 'XML file of more than 50 MiB'
            raw = path.read_bytes()
        except (OSError, ValueError):
            return 'missing XML file'
        # An entity may stand for gigabytes, or for another file.
        if b'<!ENTITY' in raw or '<!ENTITY'.encode('utf-16-le') in raw:
            return 'XML file with entities, which is not read'
        try:
            root = ElementTree.fromstring(raw)
        except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
            return 'file that is no XML' if raw.strip(b'\0 \r\n') else 'XML file of 0 bytes'
        faults: list[tuple[str, str, str]] = []
        size = _size_of(root)
        if size is None and root.find('size') is not None:
            faults.append(('error', 'size without width and height', ''))
        classes = []
        for number, node in enumerate(root.findall('object'), 1):
            label = node.findtext('name')
            level, text = self._fault_of(node, label, size)
            if text:
                faults.append((level, text, f'object {number}, {label}'[:60]))
            if level != 'error' and label in self.classes and node.findtext('difficult') != '1':
                classes.append(str(label))
        return size, faults, classes

    def _fault_of(
        self, node: Any, label: str | None, size: tuple[float, float] | None
    ) -> tuple[str, str]:
        if label is None:
            return 'error', 'object without a name'
        if label not in self.classes:
            # Subsets of the classes are common, and blanks or upper case are not.
            near = {one.casefold() for one in self.classes}
            if label.strip().casefold() in near:
                return 'error', 'object whose name differs from a class in upper case or blanks'
            return 'warning', 'object of a class that is not listed, which is not trained on'
        if not (node.findtext('difficult') or '0').strip().lstrip('+-').isdigit():
            return 'error', 'object whose difficult is no whole number'
        box = node.find('bndbox')
        if box is None:
            return 'error', 'object without a bndbox'
        left, top, right, bottom = (
            _number(box.findtext(side)) for side in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        if not all(map(math.isfinite, (left, top, right, bottom))):
            return 'error', 'bndbox that is not four finite numbers'
        if right < left or bottom < top:
            return 'error', 'bndbox whose maximum is below its minimum'
        if right == left or bottom == top:
            return 'error', 'empty bndbox'
        if size is not None:
            if left > size[0] or top > size[1] or right < 0 or bottom < 0:
                return 'error', 'bndbox outside the picture'
            if left < -1 or top < -1 or right > size[0] + 1 or bottom > size[1] + 1:
                return 'warning', 'bndbox that reaches over the edge of the picture'
        return '', ''


def _number(text: str | None) -> float:
    try:
        return float(text or 'nan')
    except ValueError:
        return math.nan


def _size_of(root: Any) -> tuple[float, float] | None:
    size = _number(root.findtext('size/width')), _number(root.findtext('size/height'))
    return size if all(0 < side < math.inf for side in size) else None
