"""Faults of masks: polygons and run lengths, which are never drawn here.

A point at infinity or a mask of a thousand megapixels costs pycocotools all memory.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from .annotations import Fault, column, where

_BLOCK = 1 << 12  # masks at a time: their numbers stay in the processor's cache
_FAR = 10  # widths of a picture that a point may be away from it
NO_MASK = 'annotation without a mask (segmentation)'
BAD_POINTS = 'polygon that is no list of finite numbers'
SHORT = 'polygon of fewer than three points, or with half a point'
FAR = 'polygon with points far from the picture'
FLAT = 'polygon without an area'
PART = 'mask of which a part has fewer than three points, which is not drawn'
NO_COUNTS = 'mask without counts'
OTHER_SIZE = 'mask of another size than the picture'
BAD_COUNTS = 'mask with run lengths that do not fill its size'


def check_masks(annotations: Sequence[dict], sizes: np.ndarray) -> Iterator[Fault]:
    """Yield the faults of the masks of annotations.

    Args:
        annotations (sequence of dict): The annotations.
        sizes (ndarray): Of shape (N, 2), width and height of the picture of each, in pixels; NaN if
            unknown.
    """
    found: dict[str, list[int]] = {}
    masks = column(annotations, 'segmentation')
    for first in range(0, len(masks), _BLOCK):
        polygons: list[tuple[int, list]] = []
        runs: list[tuple[int, dict]] = []
        for row in range(first, min(first + _BLOCK, len(masks))):
            mask = masks[row]
            if type(mask) is list and mask:
                fault = _fault_of_polygons(mask)
                if not fault:
                    polygons.append((row, mask))
            elif type(mask) is dict:
                fault = _fault_of_runs(mask, sizes[row])
                if not fault and isinstance(mask['counts'], str):
                    runs.append((row, mask))
            else:
                fault = NO_MASK
            if fault:
                found.setdefault(fault, []).append(row)
        for text, row in chain(_compare(polygons, sizes), _decode(runs)):
            found.setdefault(text, []).append(row)
    for text, rows in found.items():
        level = 'warning' if text in (FLAT, PART) else 'error'
        remedy = 'parts' if text in (BAD_POINTS, SHORT, PART) else ''
        yield Fault(level, text, 'annotations', np.array(rows), remedy=remedy)


def _fault_of_polygons(mask: list) -> str:
    faults = [fault_of_polygon(part) for part in mask]
    if BAD_POINTS in faults:
        return BAD_POINTS
    # pycocotools takes what the first part is for the form of all.
    return PART if SHORT in faults and not faults[0] else next(filter(None, faults), '')


def fault_of_polygon(part: Any) -> str:
    """Return what is wrong with one polygon, ``[x, y, x, y, ...]``; empty if nothing."""
    if type(part) is not list:
        return BAD_POINTS
    try:
        total = sum(part)
        # The sum of huge numbers may be infinite, and of truth values it is a number.
        sound = math.isfinite(total) and type(total) in (int, float)
    except (TypeError, OverflowError):
        sound = False
    if not sound and not all(
        type(one) in (int, float) and abs(one) < 1e15 and one == one for one in part
    ):
        return BAD_POINTS
    return SHORT if len(part) < 6 or len(part) % 2 else ''


def _compare(polygons: list[tuple[int, list]], sizes: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yield the masks of which points are far from the picture, or that are flat."""
    parts = [part for _, mask in polygons for part in mask]
    if not parts:
        return
    owners = np.repeat([row for row, _ in polygons], [len(mask) for _, mask in polygons])
    lengths = np.array([len(part) // 2 for part in parts])
    points = np.fromiter(chain.from_iterable(parts), float, 2 * lengths.sum()).reshape(-1, 2)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    # Relative to the first point of each, so that large coordinates do not round to an area.
    with np.errstate(all='ignore'):  # points that are far
        x, y = (points - np.repeat(points[starts], lengths, axis=0)).T
        areas = np.abs(np.add.reduceat(x * y[following] - y * x[following], starts)) / 2
    side = np.nan_to_num(sizes[owners].max(1), nan=1e5)
    reach = np.maximum.reduceat(np.abs(points).max(1), starts)
    far = set(owners[reach / (_FAR + 1) > side].tolist())
    drawn = set(owners[areas > 0].tolist())
    for row, _ in polygons:
        if row in far:
            yield FAR, row
        elif row not in drawn:
            yield FLAT, row


def _fault_of_runs(mask: dict, size: np.ndarray) -> str:
    counts, own = mask.get('counts'), mask.get('size')
    if not isinstance(counts, (str, list)) or not counts:
        return NO_COUNTS
    if type(own) is not list or len(own) != 2 or not all(type(side) is int for side in own):
        return OTHER_SIZE
    if (np.isfinite(size).all() and own != size[::-1].tolist()) or min(own) < 1:
        return OTHER_SIZE
    if max(own) >= 2**31:
        return OTHER_SIZE
    if isinstance(counts, list) and not (
        all(type(run) is int and run >= 0 for run in counts) and sum(counts) == own[0] * own[1]
    ):
        return BAD_COUNTS
    return ''


def _decode(runs: list[tuple[int, dict]]) -> Iterator[tuple[str, int]]:
    """Yield the masks whose compressed run lengths do not fill their size."""
    if not runs:
        return
    texts = [mask['counts'].encode('ascii', 'replace') for _, mask in runs]
    totals, sound = run_totals(texts)
    areas = np.array([float(mask['size'][0]) * mask['size'][1] for _, mask in runs])
    for index in where(~sound | (totals != areas)):
        yield BAD_COUNTS, runs[index][0]


def run_totals(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the run lengths of compressed masks, and whether each is well formed.

    A number is written in groups of five bits from 48 on, the lowest first, with a sixth bit if
    more follow; from the fourth number on it is the difference to the one before the last.

    Args:
        texts (sequence of bytes): The counts.

    Returns:
        tuple[ndarray, ndarray]: Sums, and truth values.
    """
    lengths = np.array([len(text) for text in texts])
    codes = np.frombuffer(b''.join(texts), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(texts)), lengths)
    sound = np.ones(len(texts), bool)
    sound[owner[(codes < 0) | (codes > 63)]] = False
    last = (codes & 32) == 0
    ends = np.cumsum(lengths) - 1
    sound &= last[ends]
    last[ends] = True  # so that a broken text does not go on into the next
    stops = np.flatnonzero(last)
    begins = np.concatenate([[0], stops[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(begins, stops - begins + 1)
    sound[owner[place > 6]] = False  # more than the 32 bits of a run length
    values = np.add.reduceat((codes & 31) << (5 * np.minimum(place, 6)), begins)
    size = 5 * np.minimum(place[stops] + 1, 7)
    values -= ((codes[stops] & 16) > 0) * (np.int64(1) << size)
    mask = owner[stops]
    first = np.concatenate([[0], np.cumsum(np.bincount(mask, minlength=len(texts)))[:-1]])
    index = np.arange(len(values)) - first[mask]
    # Numbers 0; 1, 3, 5, ...; and 2, 4, 6, ... of a mask are added up apart.
    group = mask * 3 + np.where(index == 0, 0, 2 - index % 2)
    order = np.argsort(group, kind='stable')
    added = np.cumsum(values[order])
    heads = np.flatnonzero(np.diff(group[order], prepend=-1))
    before = np.where(heads > 0, added[heads - 1], 0)
    counts = np.empty_like(values)
    counts[order] = added - np.repeat(before, np.diff(heads, append=len(values)))
    sound[mask[counts < 0]] = False
    totals = np.bincount(mask, weights=counts, minlength=len(texts))
    return totals, sound
