"""Masks of objects as crops, for pipelines of mmdet: the same bitmaps in a part of the time.

A bitmap of mmdet has the size of the picture, and each step of a pipeline copies all of them. An
object fills a small part of its picture, so the steps work on the part that holds it, and the
bitmaps are made where somebody reads them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from mmdet.datasets.transforms import LoadAnnotations as MmdetLoadAnnotations
from mmdet.structures.mask import BitmapMasks


class Crop(NamedTuple):
    """The part of a mask outside of which all values are 0.

    Attributes:
        values (np.ndarray): Its values, of shape (height, width).
        top (int): Row of the mask where it begins.
        left (int): Column of the mask where it begins.
    """

    values: np.ndarray
    top: int
    left: int

    @property
    def rows(self) -> slice:
        """The rows of the mask that it takes."""
        return slice(self.top, self.top + self.values.shape[0])

    @property
    def columns(self) -> slice:
        """The columns of the mask that it takes."""
        return slice(self.left, self.left + self.values.shape[1])


class CroppedMasks(BitmapMasks):
    """mmdet's ``BitmapMasks``, of which each method that a pipeline calls works on crops.

    ``masks`` makes the bitmaps when it is read first. They may be changed: from then on, they are
    what all methods take.

    Args:
        crops (sequence of Crop): For each object, the part that holds it.
        height (int): Height of the masks.
        width (int): Width of the masks.
    """

    def __init__(self, crops: Sequence[Crop], height: int, width: int) -> None:
        self.crops, self.height, self.width = list(crops), height, width

    @cached_property
    def masks(self) -> np.ndarray:
        """The bitmaps, of shape (objects, height, width)."""
        masks = np.zeros((len(self.crops), self.height, self.width), np.uint8)
        for mask, crop in zip(masks, self.crops):
            mask[crop.rows, crop.columns] = crop.values
        return masks

    @property
    def are_whole(self) -> bool:
        """Whether there are bitmaps, which may have changed since they were made."""
        return 'masks' in vars(self)

    def __len__(self) -> int:
        return len(self.masks) if self.are_whole else len(self.crops)

    def __getitem__(self, index: Any) -> BitmapMasks:
        if self.are_whole:
            return super().__getitem__(index)
        chosen = np.arange(len(self))[index].reshape(-1)
        return CroppedMasks([self.crops[number] for number in chosen], self.height, self.width)

    def rescale(self, scale: Any, interpolation: str = 'nearest') -> BitmapMasks:
        """Resize the masks as ``mmcv.imrescale`` resizes a picture."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> BitmapMasks:
        """Resize the masks to a height and a width, always by OpenCV."""
        if self.are_whole or interpolation != 'nearest':
            return super().resize(out_shape, interpolation)
        height, width = out_shape
        rows, columns = _nearest(self.height, height), _nearest(self.width, width)

        def resized(crop: Crop) -> Crop:
            top, bottom = np.searchsorted(rows, (crop.rows.start, crop.rows.stop))
            left, right = np.searchsorted(columns, (crop.columns.start, crop.columns.stop))
            # Columns first: whole rows are copied fast, and an enlarged mask has more of them.
            values = crop.values.take(columns[left:right] - crop.left, 1)
            return Crop(values.take(rows[top:bottom] - crop.top, 0), int(top), int(left))

        return CroppedMasks([resized(crop) for crop in self.crops], height, width)

    def flip(self, flip_direction: str = 'horizontal') -> BitmapMasks:
        """Flip the masks in the direction ``'horizontal'``, ``'vertical'`` or ``'diagonal'``."""
        if self.are_whole:
            return super().flip(flip_direction)
        assert flip_direction in ('horizontal', 'vertical', 'diagonal')

        def flipped(crop: Crop) -> Crop:
            values, top, left = crop
            if flip_direction != 'horizontal':
                values, top = values[::-1], self.height - crop.rows.stop
            if flip_direction != 'vertical':
                values, left = values[:, ::-1], self.width - crop.columns.stop
            return Crop(values, top, left)

        return CroppedMasks([flipped(crop) for crop in self.crops], self.height, self.width)

    def crop(self, bbox: np.ndarray) -> BitmapMasks:
        """Cut a box (x1, y1, x2, y2) out of all masks; what lies outside of the masks is cut off.

        A box without a height or width has one of 1.
        """
        if self.are_whole:
            return super().crop(bbox)
        x1, x2 = np.clip(bbox[0::2], 0, self.width)
        y1, y2 = np.clip(bbox[1::2], 0, self.height)
        height, width = int(max(y2 - y1, 1)), int(max(x2 - x1, 1))

        def cut(crop: Crop) -> Crop:
            top, left = max(crop.top, y1), max(crop.left, x1)
            bottom, right = min(crop.rows.stop, y1 + height), min(crop.columns.stop, x1 + width)
            rows = slice(top - crop.top, max(bottom, top) - crop.top)
            columns = slice(left - crop.left, max(right, left) - crop.left)
            return Crop(crop.values[rows, columns], int(top - y1), int(left - x1))

        return CroppedMasks([cut(crop) for crop in self.crops], height, width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Enlarge the masks at the bottom and at the right."""
        if self.are_whole or pad_val != 0:
            return super().pad(out_shape, pad_val)
        return CroppedMasks(self.crops, *out_shape)


def _nearest(size: int, new_size: int) -> np.ndarray:
    """Return which rows or columns OpenCV takes when it resizes by nearest neighbors."""
    numbers = np.arange(size, dtype=np.float32)[None]
    return cv2.resize(numbers, (new_size, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.intp)


class LoadAnnotations(MmdetLoadAnnotations):
    """mmdet's ``LoadAnnotations`` with masks as :class:`CroppedMasks`: the same values, faster.

    The arguments are those of mmdet. With ``poly2mask=False`` the masks are polygons, as there.
    """

    def _load_masks(self, results: dict) -> None:
        if not self.poly2mask:
            super()._load_masks(results)
            return
        height, width = results['ori_shape']
        masks = self._process_masks(results)
        crops = [self._crop(mask, height, width) for mask in masks]
        results['gt_masks'] = CroppedMasks(crops, height, width)

    def _crop(self, annotation: list | dict, height: int, width: int) -> Crop:
        # Drawing takes time for each pixel, and polygons need none beyond their last point.
        if isinstance(annotation, list):
            width = min(width, max(1, int(max(part[0::2].max() for part in annotation)) + 2))
            height = min(height, max(1, int(max(part[1::2].max() for part in annotation)) + 2))
        mask = self._poly2mask(annotation, height, width)
        # It comes by columns: transposed, OpenCV need not copy it.
        top, left, rows, columns = cv2.boundingRect(mask.T)
        values = mask[top : top + rows, left : left + columns]
        return Crop(np.ascontiguousarray(values), top, left)
