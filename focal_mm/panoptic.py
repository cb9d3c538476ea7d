"""What mmdet asks of panopticapi, which is not on PyPI, to load and evaluate panoptic maps.

Kirillov et al., Panoptic Segmentation (2019). :func:`install` offers this module under
panopticapi's name where that is not installed.
"""
import sys
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

__all__ = ['OFFSET', 'VOID', 'PQStat', 'id2rgb', 'install', 'rgb2id']

OFFSET = 256**3  # above every segment's id
VOID = 0  # the id of pixels in no segment


def rgb2id(color: np.ndarray) -> np.ndarray:
    """The segments' ids, (...) int32, of a panoptic map's colours, (..., 3), red lowest."""
    return np.asarray(color).astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """The colours, (..., 3) uint8, that stand for ids, (...) from 0 to 256**3 - 1."""
    return (np.asarray(ids)[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)


@dataclass
class _Matches:
    """Matched segments of a class with the sum of their IoUs, and unmatched ones."""
    iou: float = 0.
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def qualities(self) -> dict[str, float]:
        """Equations 1 and 2: PQ is SQ, the mean IoU, times RQ, the F1 score; 0 without segments."""
        sq = self.iou / max(self.tp, 1)
        rq = self.tp / max(self.tp + (self.fp + self.fn) / 2, 0.5)
        return dict(pq=sq * rq, sq=sq, rq=rq)


class PQStat:
    """Matches of every class: ``stat[category_id].tp``, ``stat += another``."""

    def __init__(self) -> None:
        self.classes = defaultdict(_Matches)

    def __getitem__(self, category_id: int) -> _Matches:
        return self.classes[category_id]

    def __iadd__(self, other: 'PQStat') -> 'PQStat':
        for category_id, more in other.classes.items():
            for name, value in vars(more).items():
                setattr(self[category_id], name, getattr(self[category_id], name) + value)
        return self

    def pq_average(self, categories: dict[int, dict],
                   isthing: bool | None) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Means over the classes that have segments, and each class's own figures, 0 to 1.

        Args:
            categories (dict): COCO's categories by id.
            isthing (bool, optional): Things alone, stuff alone, or None: all.

        Returns:
            tuple: ``pq``, ``sq``, ``rq`` and ``n``, the number of classes averaged; by category id
                ``pq``, ``sq`` and ``rq``.
        """
        own = {i: self[i].qualities() for i, category in categories.items()
               if isthing is None or isthing == bool(category['isthing'])}
        seen = [figures for i, figures in own.items() if self[i] != _Matches()]
        means = {key: sum(figures[key] for figures in seen) / max(len(seen), 1)
                 for key in ('pq', 'sq', 'rq')}
        return dict(means, n=len(seen)), own


utils = evaluation = sys.modules[__name__]  # panopticapi's two modules, of which this is both


def install() -> bool:
    """Puts this module into ``sys.modules`` as panopticapi, if there is none.

    Returns:
        bool: Whether panopticapi is ours.
    """
    if find_spec('panopticapi') is None:
        for name in ('panopticapi', 'panopticapi.utils', 'panopticapi.evaluation'):
            sys.modules[name] = sys.modules[__name__]
    return sys.modules.get('panopticapi') is sys.modules[__name__]
