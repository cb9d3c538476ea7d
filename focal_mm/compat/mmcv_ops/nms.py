"""Non-maximum suppression: greedy, soft and, with the dropped boxes, matching.

All compare ``IoU = intersection / union`` of boxes whose width is ``x2 - x1 + offset``. ``offset``
is 0, or 1 for the inclusive pixel coordinates of mmdet 1; matching has none. They take float32, as
mmcv does, and float64.
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import at_least_float32

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy NMS: drop a box if its IoU with a kept, higher-scoring one exceeds the threshold.

    Args:
        boxes (Tensor): (N, 4), x1, y1, x2, y2.
        scores (Tensor): (N,). Boxes of equal scores keep their order.
        iou_threshold (float): A box whose IoU is equal to the threshold is kept.
        offset (int): 0 or 1.

    Returns:
        Tensor: int64 indices of the kept boxes, by decreasing score.
    """
    boxes, scores = at_least_float32(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares with a float32 threshold, torchvision with a float64 one: at an IoU of exactly
    # 0.7 they would disagree.
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), float(np.float32(iou_threshold)))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017): decay the scores of overlapping boxes, eqs. 1 to 3.

    The box with the highest score is taken. The scores of the other boxes are multiplied by a
    weight that depends on their IoU with it, and boxes below ``min_score`` are dropped. This
    repeats until no box is left.

    Args:
        boxes (Tensor): (N, 4) on the CPU, x1, y1, x2, y2.
        scores (Tensor): (N,).
        dets (Tensor): (N, 5), written: row i is the i-th taken box with its decayed score. Rows
            after the last taken box are not written.
        iou_threshold (float): Minimum IoU at which the naive method (weight 0) and the linear
            method (weight 1 - IoU) change a score.
        sigma (float): Width of the Gaussian method (weight exp(-IoU**2 / sigma)).
        min_score (float): Boxes with a lower score are dropped.
        method (int): 0 naive, 1 linear, 2 Gaussian.
        offset (int): 0 or 1.

    Returns:
        Tensor: int64 indices of the taken boxes, in the order taken.
    """
    corners, score = (t.detach().numpy() for t in at_least_float32(boxes, scores))
    x1, y1, x2, y2 = corners.T
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    # One row per quantity, so that a swap or a removal moves all of them.
    table = np.stack([x1, y1, x2, y2, score, area])
    x1, y1, x2, y2, score, area = table
    order = np.arange(len(score))
    taken, left = 0, len(score)
    while taken < left:
        best = taken + score[taken:left].argmax()
        table[:, [taken, best]] = table[:, [best, taken]]
        order[[taken, best]] = order[[best, taken]]
        i, rest = taken, slice(taken + 1, left)
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + offset
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + offset
        inter = width.clip(0) * height.clip(0)
        with np.errstate(invalid='ignore'):  # 0 / 0 for boxes without an area
            iou = inter / (area[i] + area[rest] - inter)
        if method == GAUSSIAN:
            score[rest] *= np.exp(-(iou * iou) / sigma)
        else:
            score[rest] *= np.where(iou >= iou_threshold, 0 if method == NAIVE else 1 - iou, 1)
        # mmcv fills the place of each dropped box with the last remaining box, which determines
        # the order of equal scores.
        taken += 1
        kept = score[taken:left] >= min_score
        left = taken + np.count_nonzero(kept)
        holes = taken + np.flatnonzero(~kept[: left - taken])
        fillers = left + np.flatnonzero(kept[left - taken :])[::-1]
        table[:, holes] = table[:, fillers]
        order[holes] = order[fillers]
    dets[:left] = torch.from_numpy(table[:5, :left].T)
    return torch.from_numpy(order[:left])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy NMS that returns each kept box with the boxes that it drops.

    Args:
        dets (Tensor): (N, 5) on the CPU, x1, y1, x2, y2, score. Boxes of equal scores keep their
            order.
        iou_threshold (float): A box is dropped if its IoU with a kept, higher-scoring one is equal
            to the threshold or above; :func:`nms` keeps it if it is equal.

    Returns:
        list[list[int]]: One group for each kept box, by decreasing score: the index of the box,
        then the indices of the dropped boxes by decreasing score.
    """
    (boxes,) = (t.detach().numpy() for t in at_least_float32(dets))
    x1, y1, x2, y2, score = boxes.T
    area = (x2 - x1) * (y2 - y1)
    left = np.argsort(-score, kind='stable')
    groups = []
    while len(left):
        best, rest = left[0], left[1:]
        width = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest])
        height = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest])
        inter = width.clip(0) * height.clip(0)
        with np.errstate(invalid='ignore'):  # 0 / 0 for boxes without an area
            dropped = inter / (area[best] + area[rest] - inter) >= np.float32(iou_threshold)
        groups.append([int(best), *rest[dropped].tolist()])
        left = rest[~dropped]
    return groups
