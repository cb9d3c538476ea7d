"""Faults of the records of a COCO file, found in whole columns: a file has up to a million."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

TOLERANCE = 1e-3  # part of the annotations that training may drop without being worth an error
OUTSIDE = 'keypoint outside the picture'
MISSING = 'annotation without keypoints'
MISCOUNTED = 'num_keypoints that is not the number of labelled keypoints'
_EXACT = 2**53  # pycocotools keeps ids of annotations as floats


@dataclass(frozen=True)
class Rules:
    """What a file of COCO's form is read for.

    Attributes:
        classes (tuple[str], optional): The categories that are trained on. Default: all.
        masks (bool): Whether masks are trained or evaluated. Default: False.
        keypoints (bool): Whether keypoints are trained. Default: False.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Only a test may lack annotations, and only
            in training a class without examples is worth a warning. Default: ``'train'``.
        areas (bool): Whether the dataset reads areas. Default: True.
        lvis (bool): Whether the file is one of LVIS. Default: False.
    """

    classes: tuple[str, ...] | None = None
    masks: bool = False
    keypoints: bool = False
    role: str = 'train'
    areas: bool = True
    lvis: bool = False


@dataclass
class Fault:
    """A fault of records of a COCO file.

    Attributes:
        level (str): ``'error'``, ``'warning'`` or ``'note'``.
        text (str): What is wrong.
        table (str): ``'images'``, ``'annotations'`` or ``'categories'``; empty: the whole file.
        rows (ndarray): Indices of the records.
        detail (Callable): Takes an index and returns what to say beside the id. Default: nothing.
        remedy (str): What a cleaned copy does: ``'drop'`` the records, ``'keep'`` them, give them a
            new ``'id'``, fill in the ``'area'`` or the size of the picture (``'size'``), or nothing
            because it cannot mend it (``'none'``). Default: drop what is an error.
    """

    level: str
    text: str
    table: str = ''
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    detail: Callable[[int], str] = lambda row: ''
    remedy: str = ''

    def __post_init__(self) -> None:
        if not self.remedy:
            self.remedy = 'drop' if self.level == 'error' and self.table else 'keep'


def records_of(content: dict[str, Any], table: str) -> list[dict]:
    """Return the records of a list of the file, with an empty one for what is no record."""
    return [one if isinstance(one, dict) else {} for one in content.get(table) or ()]


def column(records: Sequence[dict], key: str) -> list[Any]:
    """Return the values of a key, None where it is missing."""
    return [one.get(key) for one in records]


def ids_of(values: Sequence[Any]) -> list[Any]:
    """Return ids as they are compared; None for what is none: a list, NaN, a truth value."""
    if set(map(type, values)) <= {int}:
        return list(values)
    return [
        value
        if type(value) in (int, str)
        else int(value)
        if type(value) is float and value.is_integer()
        else None
        for value in values
    ]


def where(condition: Any) -> np.ndarray:
    """Return the indices at which a condition is true."""
    return np.flatnonzero(np.asarray(condition, bool))


def number_of(value: Any) -> float:
    """Return a number of a JSON file as a float; NaN if it is none."""
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def numbers_of(values: Sequence[Any]) -> np.ndarray:
    """Return a column of numbers, NaN where there is none."""
    return np.array([number_of(value) for value in values], float)


def check_ids(records: Sequence[dict], table: str, name: str) -> Iterator[Fault]:
    """Yield the faults of the ids of a list.

    Args:
        records (sequence of dict): The records.
        table (str): ``'images'``, ``'annotations'`` or ``'categories'``.
        name (str): What a record is called, as ``'image'``.
    """
    values = column(records, 'id')
    ids = ids_of(values)
    remedy = 'id' if table == 'annotations' else ''
    bad = where([one is None for one in ids])
    if bad.size:
        yield Fault('error', f'{name} without an id', table, bad, remedy=remedy)
    strings = where([isinstance(one, str) for one in ids])
    if strings.size:
        # The marks of what matched are an array of numbers in pycocotools.
        level = 'error' if table == 'annotations' else 'warning'
        yield Fault(level, f'{name} id that is a string', table, strings, remedy=remedy or 'keep')
    counts = Counter(ids)
    repeated = where([one is not None and counts[one] > 1 for one in ids])
    if repeated.size:
        yield Fault('error', f'{name} id that occurs twice', table, repeated, remedy=remedy)
    if table == 'annotations':
        zero = where([one == 0 for one in ids])
        if zero.size:
            text = 'annotation id 0, which pycocotools never counts as found'
            yield Fault('warning', text, table, zero, remedy=remedy)
        huge = where([isinstance(one, int) and abs(one) > _EXACT for one in ids])
        if huge.size:
            text = 'annotation id beyond 2^53, which pycocotools rounds'
            yield Fault('error', text, table, huge, remedy=remedy)


class Boxes:
    """The boxes of a file, and which of them training can use.

    Args:
        annotations (sequence of dict): The annotations.
        sizes (ndarray): Of shape (N, 2), width and height of the picture of each, in pixels; NaN if
            unknown.
    """

    def __init__(self, annotations: Sequence[dict], sizes: np.ndarray) -> None:
        self.raw = column(annotations, 'bbox')
        self.sizes = sizes
        self.values = _table(self.raw)
        finite = np.isfinite(self.values).all(1)
        with np.errstate(invalid='ignore', over='ignore'):
            x, y, w, h = self.values.T
            right, bottom = x + w, y + h
            width, height = sizes.T
            self.malformed = np.array([not _is_box(box) for box in self.raw], bool)
            self.infinite = ~finite & ~self.malformed
            self.negative = finite & ((w < 0) | (h < 0))
            sound = finite & ~self.negative
            self.empty = sound & ((w == 0) | (h == 0))
            sound &= ~self.empty
            self.outside = sound & ((x >= width) | (y >= height) | (right <= 0) | (bottom <= 0))
            sound &= ~self.outside
            self.tiny = sound & ((w < 1) | (h < 1))
            self.usable = sound & ~self.tiny
            over = (x < -1) | (y < -1) | (right > width + 1) | (bottom > height + 1)
            self.over = self.usable & over
            # Corners instead of sizes stay in the picture, and so often do not as sizes.
            corners = finite & (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1)
            fractions = finite & (self.values >= 0).all(1) & (self.values <= 1).all(1)
        known = int(finite.sum())
        self.are_corners = known > 0 and corners.sum() == known and self.over.sum() > known / 5
        self.are_fractions = (
            known > 0 and fractions.sum() == known and bool((sizes[finite] > 2).any())
        )

    def faults(self) -> Iterator[Fault]:
        """Yield the faults of the boxes."""
        bearable = TOLERANCE * len(self.raw)

        def fault(level: str, text: str, condition: np.ndarray) -> Iterator[Fault]:
            if condition.any():
                yield Fault(level, text, 'annotations', where(condition), self._say)

        def unless_rare(condition: np.ndarray) -> str:
            return 'error' if condition.sum() > bearable else 'warning'

        yield from fault('error', 'bbox that is not [x, y, width, height]', self.malformed)
        yield from fault('error', 'bbox that is not finite', self.infinite)
        yield from fault('error', 'bbox with a negative width or height', self.negative)
        if self.are_fractions:
            everything = ~self.malformed
            yield from fault(
                'error', 'bbox in fractions of the picture, where pixels are read', everything
            )
            return
        if self.are_corners:
            text = 'bbox that seems to be [left, top, right, bottom], not [x, y, width, height]'
            yield from fault('error', text, self.over)
        yield from fault(unless_rare(self.empty), 'empty bbox, which is not trained on', self.empty)
        yield from fault(
            unless_rare(self.outside), 'bbox outside the picture, not trained on', self.outside
        )
        yield from fault('warning', 'bbox under a pixel, which is not trained on', self.tiny)
        if not self.are_corners:
            yield from fault('warning', 'bbox that reaches over the edge of the picture', self.over)

    def _say(self, row: int) -> str:
        return f'{self.raw[row]}'[:60]


def _is_box(box: Any) -> bool:
    return type(box) is list and len(box) == 4 and all(type(side) in (int, float) for side in box)


def _table(boxes: Sequence[Any]) -> np.ndarray:
    """Return boxes as an array of shape (N, 4), NaN where a box is none."""
    if all(type(box) is list and len(box) == 4 for box in boxes) and set(
        map(type, chain.from_iterable(boxes))
    ) <= {int, float}:
        try:
            return np.array(boxes, float).reshape(-1, 4)
        except OverflowError:
            pass
    return np.array(
        [[number_of(side) for side in box] if _is_box(box) else [math.nan] * 4 for box in boxes],
        float,
    ).reshape(-1, 4)


def check_areas(annotations: Sequence[dict]) -> tuple[np.ndarray, list[Fault]]:
    """Return which areas training can use, and the faults of the others."""
    areas = numbers_of(column(annotations, 'area'))
    with np.errstate(invalid='ignore'):
        missing, empty = ~np.isfinite(areas), areas <= 0
    empty &= ~missing
    faults = []
    if missing.any():
        faults.append(
            Fault(
                'error', 'annotation without an area', 'annotations', where(missing), remedy='area'
            )
        )
    if empty.any():
        level = 'error' if empty.sum() > TOLERANCE * len(areas) else 'warning'
        text = 'annotation with an area of 0 or less, which is not trained on'
        faults.append(Fault(level, text, 'annotations', where(empty), remedy='area'))
    return ~missing & ~empty, faults


def check_keypoints(
    annotations: Sequence[dict],
    lengths: Sequence[int],
    sizes: np.ndarray,
    required: bool,
) -> Iterator[Fault]:
    """Yield the faults of keypoints.

    Args:
        annotations (sequence of dict): The annotations.
        lengths (sequence of int): For each the number of keypoints of its category; 0: unknown.
        sizes (ndarray): Of shape (N, 2), the size of each picture.
        required (bool): Whether keypoints are trained, so that their faults are errors.
    """
    level = 'error' if required else 'warning'
    rows: dict[str, list[int]] = {}
    for row, annotation in enumerate(annotations):
        points = annotation.get('keypoints')
        if points is None:
            if required and not annotation.get('iscrowd'):
                rows.setdefault(MISSING, []).append(row)
        elif text := _fault_of_keypoints(points, annotation, lengths[row], sizes[row]):
            rows.setdefault(text, []).append(row)
    soft = (OUTSIDE, MISSING, MISCOUNTED)
    for text, found in rows.items():
        remedy = 'drop' if required and text not in soft else 'keep'
        yield Fault(
            'warning' if text in soft else level,
            text,
            'annotations',
            np.array(found),
            remedy=remedy,
        )


def _fault_of_keypoints(points: Any, annotation: dict, length: int, size: np.ndarray) -> str:
    if type(points) is not list or not {type(value) for value in points} <= {int, float}:
        return 'keypoints that are no list of numbers'
    if len(points) % 3 or (length and len(points) != 3 * length):
        return 'keypoints of another number than the category has, each x, y, visibility'
    table = np.array([number_of(value) for value in points]).reshape(-1, 3)
    if not np.isfinite(table).all():
        return 'keypoints that are not finite'
    if ((table[:, 2] < 0) | (table[:, 2] > 2)).any():
        return 'keypoint of another visibility than 0, 1 or 2'
    count = annotation.get('num_keypoints')
    labelled = table[:, 2] > 0
    if count is not None and count != int(labelled.sum()):
        return MISCOUNTED
    x, y = table[labelled, :2].T
    if ((x < -1) | (y < -1) | (x > size[0] + 1) | (y > size[1] + 1)).any():
        return OUTSIDE
    return ''
