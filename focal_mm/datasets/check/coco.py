"""Files of COCO's form: instances, keypoints and LVIS."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np

from .annotations import (
    Boxes,
    Fault,
    Rules,
    check_areas,
    check_ids,
    check_keypoints,
    column,
    ids_of,
    number_of,
    numbers_of,
    records_of,
    where,
)
from .json_file import read_json
from .masks import check_masks
from .pictures import Checked, Reading, check_pictures
from .remember import remember
from .report import EXAMPLES, Report
from .resizing import Resizing

# How datasets of mmdet make the name of a picture from its record.
NAMES = ('file_name', 'coco_url', 'LVIS v0.5', 'Objects365 V2')
NO_OBJECT = 'entry that is no object of names and values'
_FREQUENCIES = ('r', 'c', 'f')


@dataclass(frozen=True)
class CocoFile:
    """A file of COCO's form, and how it is read.

    Attributes:
        file (Path): The annotation file.
        folder (Path): Folder of the pictures.
        rules (Rules): What the file is read for.
        naming (str): One of ``NAMES``. Default: ``'file_name'``.
        resizing (Resizing, optional): How training resizes the pictures.
        reading (Reading): How training reads the pictures.
    """

    file: Path
    folder: Path
    rules: Rules = field(default_factory=Rules)
    naming: str = 'file_name'
    resizing: Resizing | None = None
    reading: Reading = field(default_factory=Reading)

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the file and its pictures.

        What is found in the file is remembered by its content; the pictures are looked at anew.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode every picture. Default: False.

        Returns:
            Checked: The pictures.
        """
        verdict = remember(self.file, f'{self.rules} {self.naming} {self.resizing}', self._examine)
        for level, fault, places, count in verdict['findings']:
            report.add(level, self.file, fault, places, count)
        pictures = {name: self.folder / name for name in verdict['pictures']}
        sizes = {name: tuple(size) for name, size in verdict['sizes'].items()}
        unusable = check_pictures(
            self.folder, pictures, report, thorough, sizes, self.file, self.reading
        )
        if verdict['content']:
            report.looked_at.append(f'{self.file}: {verdict["content"]}')
        return Checked(pictures, unusable)

    def _examine(self) -> dict[str, Any]:
        """Read the file; return the findings, names and sizes of the pictures as plain data."""
        report = Report()
        found: dict[str, Any] = dict(pictures=[], sizes={}, content='')
        content = read_json(self.file, report)
        if content is not None and (text := fault_of_form(content, self.rules)):
            report.error(self.file, text)
        elif content is not None:
            faults = find_faults(content, self.rules, self.naming, self.resizing)
            add_faults(content, faults, self.file, report)
            found['pictures'], found['sizes'] = pictures_of(content, self.naming)
            count = len(content.get('annotations') or ())
            found['content'] = f'{len(content["images"])} pictures, {count} annotations'
        found['findings'] = [
            [one.level, one.fault, one.examples, one.count] for one in report.findings
        ]
        return found


def fault_of_form(content: Any, rules: Rules) -> str:
    """Return why a JSON file is none of COCO's form; empty if it is one."""
    if not isinstance(content, dict):
        kind = 'a list' if isinstance(content, list) else f'{content!r}'[:40]
        return f'no COCO file, but {kind} of JSON; it is an object of images, annotations, ...'
    if isinstance(content.get('shapes'), list):
        return 'no COCO file, but one of labelme, which has a file for each picture'
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(key), list) and not (
            rules.role == 'test' and key == 'annotations' and key not in content
        ):
            return f'no COCO file: it has no list of {key}'
    return ''


def pictures_of(
    content: dict[str, Any], naming: str = 'file_name'
) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """Return the names of the pictures of a file, and what it says of their sizes."""
    names: dict[str, None] = {}
    sizes = {}
    ignored: list[str] = []
    if naming == 'Objects365 V2':
        from mmdet.datasets.objects365 import objv2_ignore_list

        ignored = objv2_ignore_list
    for image in records_of(content, 'images'):
        name = name_of(image, naming)
        if name and name not in ignored:
            names[name] = None
            size = number_of(image.get('width')), number_of(image.get('height'))
            if all(0 < side < math.inf for side in size):
                sizes[name] = size
    return list(names), sizes


def name_of(image: dict[str, Any], naming: str) -> str | None:
    """Return the name of a picture below its folder as mmdet makes it; None if there is none."""
    if naming == 'coco_url':
        name = image.get('coco_url')
        return name.replace('http://images.cocodataset.org/', '') if _is_name(name) else None
    name = image.get('file_name')
    if not _is_name(name):
        return None
    if naming == 'LVIS v0.5' and name.startswith('COCO'):
        return name[-16:]
    return '/'.join(name.split('/')[-2:]) if naming == 'Objects365 V2' else name


def _is_name(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and bool(name.strip()) and '\0' not in name


def add_faults(
    content: dict[str, Any], faults: Sequence[Fault], file: Path, report: Report
) -> None:
    """Put faults of records into a report, with the ids of the first records."""
    for fault in faults:
        places = [place_of(content, fault, int(row)) for row in fault.rows[:EXAMPLES]]
        report.add(fault.level, file, fault.text, places, len(fault.rows) or None)


def place_of(content: dict[str, Any], fault: Fault, row: int) -> str:
    """Return what a record is called in a report."""
    record = content[fault.table][row]
    name = ''
    if isinstance(record, dict) and record.get('id') is not None:
        name = f'id {record["id"]}'[:60]
    if isinstance(record, dict) and fault.table != 'annotations':
        names = record.get('file_name'), record.get('name')
        name = f'{name} {next((one for one in names if isinstance(one, str)), "")}'
    detail = fault.detail(row)
    return (name.strip() or f'{fault.table}[{row}]') + (detail and f' ({detail})')


def find_faults(
    content: dict[str, Any],
    rules: Rules,
    naming: str = 'file_name',
    resizing: Resizing | None = None,
) -> list[Fault]:
    """Return the faults of the records of a file that has the form of COCO's.

    Args:
        content (dict): The content of the file.
        rules (Rules): What the file is read for.
        naming (str): One of ``NAMES``.
        resizing (Resizing, optional): How training resizes the pictures.
    """
    images = records_of(content, 'images')
    annotations = records_of(content, 'annotations')
    categories = records_of(content, 'categories')
    faults = [
        *_check_records(content),
        *check_ids(images, 'images', 'image'),
        *_check_images(images, naming),
        *check_ids(categories, 'categories', 'category'),
        *_check_categories(categories),
        *check_ids(annotations, 'annotations', 'annotation'),
    ]
    # A file without pictures or annotations has been said to be so.
    if not annotations:
        if rules.role != 'test' and images:
            faults.append(Fault('error', 'no annotations'))
        return _tidy(content, faults)
    row_of = {one: row for row, one in enumerate(ids_of(column(images, 'id'))) if one is not None}
    raw_images = column(annotations, 'image_id')
    picture = np.array([row_of.get(one, -1) for one in ids_of(raw_images)], int)
    names = dict(zip(ids_of(column(categories, 'id')), column(categories, 'name')))
    names.pop(None, None)
    raw_categories = column(annotations, 'category_id')
    category = [names.get(one) for one in ids_of(raw_categories)]
    known = np.array([one is not None for one in category], bool)
    sides = np.array(
        [numbers_of(column(images, side)) for side in ('width', 'height')], float
    ).T.reshape(-1, 2)
    sides[~((sides > 0) & (sides < math.inf))] = math.nan
    sizes = np.vstack([sides, [math.nan] * 2])[picture]
    boxes = Boxes(annotations, sizes)
    areas = np.ones(len(annotations), bool)
    if (picture < 0).any():
        faults.append(
            Fault(
                'error',
                'annotation of an unknown image',
                'annotations',
                where(picture < 0),
                lambda row: f'{raw_images[row]!r}'[:40],
            )
        )
    if not known.all():
        faults.append(
            Fault(
                'error',
                'annotation of an unknown category',
                'annotations',
                where(~known),
                lambda row: f'{raw_categories[row]!r}'[:40],
            )
        )
    faults += boxes.faults()
    if rules.areas:
        areas, found = check_areas(annotations)
        faults += found
    crowds, found = _check_crowds(annotations)
    faults += found
    chosen = None if rules.classes is None else set(rules.classes)
    wanted = np.array(
        [chosen is None or (isinstance(one, str) and one in chosen) for one in category], bool
    )
    ignored = np.array([bool(one.get('ignore')) for one in annotations], bool)
    usable = boxes.usable & areas & known & wanted & ~crowds & ~ignored & (picture >= 0)
    if crowds.all():
        faults.append(Fault('error', 'every annotation is iscrowd, and crowds are not trained on'))
    elif not usable.any() and rules.role != 'test':
        faults.append(Fault('error', 'no annotation that can be trained on or evaluated'))
    if rules.masks:
        faults += check_masks(annotations, sizes)
    if rules.keypoints or any('keypoints' in one for one in annotations[:1000]):
        lengths = {
            one.get('name'): len(one['keypoints'])
            for one in categories
            if isinstance(one.get('keypoints'), list) and isinstance(one.get('name'), str)
        }
        counts = [lengths.get(name, 0) if isinstance(name, str) else 0 for name in category]
        faults += check_keypoints(annotations, counts, sizes, rules.keypoints)
    if rules.lvis:
        faults += _check_lvis(images, categories, picture, ids_of(raw_categories))
    if resizing is not None and rules.role == 'train':
        faults += _check_resized(boxes, sizes, resizing)
    if rules.role == 'train':
        faults += _check_examples(rules, categories, category, usable)
    return _tidy(content, faults)


def _tidy(content: dict[str, Any], faults: Sequence[Fault]) -> list[Fault]:
    """Return faults without those that a record has because it is none."""
    found = []
    for fault in faults:
        rows = fault.rows
        if fault.table and fault.text != NO_OBJECT:
            records = content[fault.table]
            rows = np.array([row for row in rows if isinstance(records[row], dict)], int)
            if not rows.size:
                continue
        mends = fault.table != 'categories' or fault.level != 'error'
        found.append(replace(fault, rows=rows, remedy=fault.remedy if mends else 'none'))
    return found


def _check_records(content: dict[str, Any]) -> Iterator[Fault]:
    for table in ('images', 'annotations', 'categories'):
        records = content.get(table) or ()
        bad = where([not isinstance(one, dict) for one in records])
        if bad.size:
            yield Fault(
                'error',
                NO_OBJECT,
                table,
                bad,
                lambda row, records=records: f'{records[row]!r}'[:40],  # type: ignore[misc]
            )
        if not len(records) and table != 'annotations':
            yield Fault('error', f'no {table}')


def _check_images(images: Sequence[dict], naming: str) -> Iterator[Fault]:
    rows: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    names = [name_of(image, naming) for image in images]
    counts = Counter(names)
    for row, (image, name) in enumerate(zip(images, names)):
        if not image:
            continue
        size = number_of(image.get('width')), number_of(image.get('height'))
        if not all(0 < side < math.inf for side in size):
            rows['error', 'image without width and height', 'size'].append(row)
        if name is None:
            key = 'coco_url' if naming == 'coco_url' else 'file_name'
            rows['error', f'image without a {key}', ''].append(row)
            continue
        if counts[name] > 1:
            rows['warning', 'picture that is listed twice', ''].append(row)
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
            text = 'absolute file_name, which does not move with its folder'
            rows['warning', text, ''].append(row)
        elif '..' in PurePosixPath(name.replace('\\', '/')).parts:
            rows['warning', 'file_name that leaves the folder of the pictures', ''].append(row)
    for (level, text, remedy), found in rows.items():
        yield Fault(level, text, 'images', np.array(found), remedy=remedy)


def _check_categories(categories: Sequence[dict]) -> Iterator[Fault]:
    names = [one.get('name') for one in categories]
    bad = where([not isinstance(name, str) or not name.strip() for name in names])
    if bad.size:
        yield Fault('error', 'category without a name', 'categories', bad)
    counts = Counter(name for name in names if isinstance(name, str))
    repeated = where([isinstance(name, str) and counts[name] > 1 for name in names])
    if repeated.size:
        yield Fault('error', 'two categories with the same name', 'categories', repeated)
    folded = Counter(name.strip().casefold() for name in counts)
    alike = where([isinstance(name, str) and folded[name.strip().casefold()] > 1 for name in names])
    if alike.size:
        text = 'categories whose names differ in upper case or blanks alone'
        yield Fault('warning', text, 'categories', alike)


def _check_crowds(annotations: Sequence[dict]) -> tuple[np.ndarray, list[Fault]]:
    values = column(annotations, 'iscrowd')
    crowds = np.array([bool(value) for value in values], bool)
    odd = where([type(value) not in (int, bool, type(None)) or value not in (0, 1, None)
                 for value in values])  # fmt: skip
    fault = Fault(
        'error',
        'iscrowd that is neither 0 nor 1',
        'annotations',
        odd,
        lambda row: f'{values[row]!r}'[:40],
    )
    return crowds, [fault] if odd.size else []


def _check_examples(
    rules: Rules, categories: Sequence[dict], category: Sequence[Any], usable: np.ndarray
) -> Iterator[Fault]:
    count = Counter(category[row] for row in where(usable) if isinstance(category[row], str))
    rows = [
        row
        for row, name in enumerate(column(categories, 'name'))
        if isinstance(name, str)
        and not count[name]
        and (rules.classes is None or name in rules.classes)
    ]
    if rows and count:
        yield Fault('warning', 'class without examples', 'categories', np.array(rows))


def _check_resized(boxes: Boxes, sizes: np.ndarray, resizing: Resizing) -> Iterator[Fault]:
    with np.errstate(all='ignore'):  # sizes beyond reason
        scale = resizing.largest(sizes)
        if scale is None:
            return
        small = boxes.usable & (boxes.values[:, 2:] * scale < 1).any(1)
    if small.any():
        yield Fault(
            'warning',
            'bbox under a pixel after resizing, also at the largest size of the pipeline',
            'annotations',
            where(small),
        )


def _check_lvis(
    images: Sequence[dict],
    categories: Sequence[dict],
    picture: np.ndarray,
    labels: Sequence[Any],
) -> Iterator[Fault]:
    bad = where([one.get('frequency') not in _FREQUENCIES for one in categories])
    if bad.size:
        yield Fault('error', 'category without a frequency, r, c or f', 'categories', bad)
    known = set(ids_of(column(categories, 'id')))
    present: dict[int, set[Any]] = defaultdict(set)
    for row, label in zip(picture.tolist(), labels):
        present[row].add(label)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        negative = image.get('neg_category_ids')
        partly = image.get('not_exhaustive_category_ids')
        if not isinstance(negative, list) or not isinstance(partly, list):
            rows['image without lists neg_category_ids and not_exhaustive_category_ids'].append(row)
            continue
        listed = ids_of([*negative, *partly])
        if not known.issuperset(listed):
            rows['image that lists an unknown category as absent or partly labelled'].append(row)
        if present[row].intersection(ids_of(negative)):
            rows['image with annotations of a category that it lists as absent'].append(row)
    for text, found in rows.items():
        yield Fault('error', text, 'images', np.array(found))
