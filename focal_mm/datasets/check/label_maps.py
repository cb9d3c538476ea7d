"""Label maps of semantic segmentation, in the layout of ADE20K or any other of mmseg."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .pictures import (
    MAX_PIXELS,
    PICTURES,
    Checked,
    Reading,
    bytes_of,
    check_pictures,
    open_picture,
    oriented_size,
    sample,
)
from .report import Report
from .work import parallel

_LAST = 2**16 - 1  # larger labels are counted as this one


@dataclass(frozen=True)
class LabelMaps:
    """Folders of pictures and of label maps, as mmseg reads them.

    Attributes:
        images (Path): Folder of the pictures.
        maps (Path): Folder of the label maps.
        classes (tuple[str]): The classes.
        suffixes (tuple[str, str]): How the names of pictures and maps end; what is before is the
            same. Default: ``('.jpg', '.png')``.
        list_file (Path, optional): Names without ends of those that are used. Default: all are.
        reduce_zero_label (bool): Whether label 0 is ignored. Default: False.
        ignore (int): The label that is ignored. Default: 255.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Default: ``'train'``.
        reading (Reading): How training reads the pictures.
        opencv (bool): Whether OpenCV reads the label maps. Default: False.
    """

    images: Path
    maps: Path
    classes: tuple[str, ...]
    suffixes: tuple[str, str] = ('.jpg', '.png')
    list_file: Path | None = None
    reduce_zero_label: bool = False
    ignore: int = 255
    role: str = 'train'
    reading: Reading = field(default_factory=Reading)
    opencv: bool = False

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the pictures and label maps.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode all. Default: 500 pictures and 500 label maps, spread evenly.

        Returns:
            Checked: The pictures.
        """
        for folder in (self.images, self.maps):
            if not folder.is_dir():
                report.error(folder, 'no such folder')
                return Checked()
        names = self._names(report)
        if not names:
            report.error(
                self.list_file or self.images, f'no pictures that end in {self.suffixes[0]}'
            )
            return Checked()
        pictures = {name: self.images / (name + self.suffixes[0]) for name in names}
        unusable = check_pictures(self.images, pictures, report, thorough, reading=self.reading)
        pairs = []
        maps = [self.maps / (name + self.suffixes[1]) for name in names]
        for name, path, length in zip(
            names, maps, parallel(bytes_of, maps, f'{self.maps.name}: files')
        ):
            if not length:
                fault = (
                    'label map of 0 bytes'
                    if length == 0
                    else f'no label map for a picture ({self.suffixes[1]})'
                )
                report.error(self.maps, fault, name + self.suffixes[length == 0])
                unusable[name] = fault
            else:
                pairs.append((name, path))
        chosen = pairs if thorough else sample(pairs)
        seen = self._check_labels(chosen, pictures, unusable, report)
        if self.role == 'train' and len(chosen) == len(pairs):
            first = int(self.reduce_zero_label)
            for label, name in enumerate(self.classes, first):
                if not seen[label]:
                    report.warning(self.maps, 'class without examples', name)
        report.looked_at.append(
            f'{self.images}: {len(pictures)} pictures, {len(chosen)} of {len(pairs)} label maps '
            'read'
        )
        return Checked(pictures, unusable, {name: name for name in names})

    def _names(self, report: Report) -> list[str]:
        """Return the names of the pictures without their ends."""
        end, map_end = self.suffixes
        if self.list_file is not None:
            return read_list(self.list_file, report)
        files = list(files_below(self.images))
        if self.images != self.maps:
            other = [
                one for one in files if one.lower().endswith(PICTURES) and not one.endswith(end)
            ]
            if other:
                text = f'picture that is not used, since it ends in no {end}'
                report.add('warning', self.images, text, other)
            names = {one.removesuffix(end) for one in files}
            alone = [
                one
                for one in files_below(self.maps)
                if one.endswith(map_end) and one.removesuffix(map_end) not in names
            ]
            if alone:
                report.add('warning', self.maps, 'label map without a picture', alone)
        return [one.removesuffix(end) for one in files if one.endswith(end)]

    def _check_labels(
        self,
        chosen: list[tuple[str, Path]],
        pictures: dict[str, Path],
        unusable: dict[str, str],
        report: Report,
    ) -> np.ndarray:
        """Read label maps; return in how many each label is, for 2^16 labels."""
        seen = np.zeros(_LAST + 1, int)
        last = len(self.classes) - 1 + self.reduce_zero_label
        ignored = {self.ignore, *([0] if self.reduce_zero_label else [])}

        def read(pair: tuple[str, Path]) -> tuple[np.ndarray, str] | str:
            name, path = pair
            return self._read(path, pictures[name] if name not in unusable else None)

        for (name, path), found in zip(chosen, parallel(read, chosen, f'{self.maps.name}: labels')):
            place = path.relative_to(self.maps).as_posix()
            if isinstance(found, str):
                report.error(self.maps, found, place)
                unusable.setdefault(name, found)
                continue
            values, fault = found
            if fault:
                report.error(self.maps, fault, place)
                unusable.setdefault(name, fault)
            beyond = [int(one) for one in values if one > last and one != self.ignore]
            if beyond:
                fault = f'labels beyond the {len(self.classes)} classes'
                several = '' if len(beyond) < 4 else ', ...'
                report.error(
                    self.maps, fault, f'{place} ({", ".join(map(str, beyond[:3]))}{several})'
                )
                unusable.setdefault(name, fault)
            if set(values.tolist()) <= ignored:
                report.warning(self.maps, 'label map in which every pixel is ignored', place)
            seen[values] += 1
        return seen

    def _read(self, path: Path, picture: Path | None) -> tuple[np.ndarray, str] | str:
        """Return the labels and a fault, or the reason why there are none."""
        if path.suffix.lower() in ('.jpg', '.jpeg'):
            return 'label map as JPEG, which changes labels'
        try:
            values = np.flatnonzero(count_labels(path))
            with open_picture(path) as labels:
                size, mode = labels.size, labels.mode
                if labels.format in ('JPEG', 'MPO'):
                    return 'label map as JPEG, which changes labels'
        except ValueError as error:
            return str(error)
        if self.opencv and mode == 'P':
            return values, 'label map with a palette, which OpenCV reads as colors'
        try:
            if picture is not None and self.reading.usual:
                with open_picture(picture) as image:
                    turned = oriented_size(image) if self.reading.turns else image.size
                if turned != size:
                    return values, 'label map of another size than its picture'
        except ValueError:  # said already
            pass
        return values, ''


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, sorted, as paths relative to it with slashes.

    As in mmengine, links are followed and files whose names begin with a dot are not listed. A link
    to a folder that it is in is not followed.
    """
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [
            one
            for one in folders
            if not f'{real}/'.startswith(f'{os.path.realpath(os.path.join(parent, one))}/')
        ]
        start = '' if parent == str(folder) else f'{os.path.relpath(parent, folder)}/'
        found += [f'{start}{name}' for name in names if not name.startswith('.')]
    yield from sorted(found)


def read_list(file: Path, report: Report) -> list[str]:
    """Return the lines of a list of names, without blanks around them.

    An empty line in the middle, a byte order mark and a name that is listed twice are faults.
    """
    try:
        text = file.read_bytes().decode('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        report.error(file, f'cannot be read as UTF-8: {" ".join(str(error).split())}')
        return []
    if text.startswith('\ufeff'):
        report.error(file, 'begins with a byte order mark, which becomes part of the first name')
        text = text.removeprefix('\ufeff')
    lines = [line.strip() for line in text.rstrip().split('\n')] if text.strip() else []
    blank = [f'line {number}' for number, line in enumerate(lines, 1) if not line]
    if blank:
        report.add('error', file, 'empty line, which is read as a name', blank)
    names = list(dict.fromkeys(filter(None, lines)))
    if repeats := len(lines) - len(blank) - len(names):
        counted: set[str] = set()
        twice = [one for one in lines if one and (one in counted or counted.add(one))]  # type: ignore[func-returns-value]
        report.add('warning', file, 'name that is listed twice', twice, repeats)
    return names


def count_labels(path: Path) -> np.ndarray:
    """Return how many pixels have each value, in a label map.

    Returns:
        ndarray: Of 256 to 65536 counts; larger values are counted as 65535.

    Raises:
        ValueError: If the file cannot be read, or holds colors instead of values.
    """
    with open_picture(path) as image:
        large = image.width * image.height > MAX_PIXELS
        labels = None if large else np.asarray(image)
    if labels is None:
        raise ValueError(f'label map of more than {MAX_PIXELS // 10**6} million pixels')
    if labels.ndim != 2:
        raise ValueError('label map of colors, not of one value a pixel')
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError('label map of other values than whole numbers from 0')
    if labels.dtype != np.uint8:
        labels = np.minimum(labels, _LAST)
    return np.bincount(labels.ravel(), minlength=256)
