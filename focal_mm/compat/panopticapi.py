"""The parts of panopticapi that mmdet uses to load and evaluate panoptic maps.

Panoptic quality is defined in Kirillov et al., Panoptic Segmentation (2019).
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

__all__ = ['OFFSET', 'VOID', 'PQStat', 'id2rgb', 'rgb2id']

OFFSET = 256**3  # larger than any segment id
VOID = 0  # id of pixels that belong to no segment


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Convert the colors of a panoptic map, (..., 3), to segment ids, (...) int32.

    Red is the lowest byte of an id, blue the highest.
    """
    return np.asarray(color).astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Convert segment ids, (...) from 0 to 256**3 - 1, to colors, (..., 3) uint8."""
    return (np.asarray(ids)[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8)


@dataclass
class _Matches:
    """Counts of one class.

    Attributes:
        iou (float): Sum of the IoUs of matched segments.
        tp (int): Matched segments.
        fp (int): Predicted segments without a match.
        fn (int): Annotated segments without a match.
    """

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def qualities(self) -> dict[str, float]:
        """Return PQ, SQ and RQ (equations 1 and 2), each 0 if there are no segments.

        SQ is the mean IoU of matched segments, RQ the F1 score, and PQ their product.
        """
        sq = self.iou / max(self.tp, 1)
        rq = self.tp / max(self.tp + (self.fp + self.fn) / 2, 0.5)
        return dict(pq=sq * rq, sq=sq, rq=rq)


class PQStat:
    """Counts of all classes: ``stat[category_id].tp``, ``stat += another``."""

    def __init__(self) -> None:
        self.classes: defaultdict[int, _Matches] = defaultdict(_Matches)

    def __getitem__(self, category_id: int) -> _Matches:
        return self.classes[category_id]

    def __iadd__(self, other: 'PQStat') -> 'PQStat':
        for category_id, more in other.classes.items():
            for name, value in vars(more).items():
                setattr(self[category_id], name, getattr(self[category_id], name) + value)
        return self

    def pq_average(
        self, categories: dict[int, dict], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Average the qualities, 0 to 1, over the classes that have segments.

        Args:
            categories (dict): COCO's categories by id.
            isthing (bool or None): True: things only; False: stuff only; None: both.

        Returns:
            tuple: The means ``pq``, ``sq`` and ``rq`` with ``n``, the number of classes averaged;
            and for each category id its own ``pq``, ``sq`` and ``rq``.
        """
        per_class = {
            i: self[i].qualities()
            for i, category in categories.items()
            if isthing is None or isthing == bool(category['isthing'])
        }
        seen = [figures for i, figures in per_class.items() if self[i] != _Matches()]
        means = {
            key: sum(figures[key] for figures in seen) / max(len(seen), 1)
            for key in ('pq', 'sq', 'rq')
        }
        return dict(means, n=len(seen)), per_class
