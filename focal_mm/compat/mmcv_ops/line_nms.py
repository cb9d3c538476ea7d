"""Non-maximum suppression of lanes (CLRNet, Zheng et al., 2022), which the OneDL stack has."""

import torch
from torch import Tensor

from .precision import at_least_float32

OFFSETS = 72  # horizontal positions of a lane, at equal distances from the bottom of the image up
FIRST = 5  # columns before them


def line_nms_forward(boxes: Tensor, scores: Tensor, thresh: float, top_k: int) -> list[Tensor]:
    """Greedy NMS: drop a lane that is close to a kept, higher-scoring one.

    The distance of two lanes is the mean horizontal distance over the heights that both have.
    Lanes without a common height are not close.

    onedl-mmcv's CUDA kernel mixes up the lanes unless they come by decreasing score: it reads
    one lane of each pair by its rank, the other by its index. Here, as in the kernel that it
    derives from, every order gives the same result.

    Args:
        boxes (Tensor): (N, 77): in column 2 the height of the lane's start, 0 to 1; in column 4 the
            number of positions, of which the fraction is ignored; from column 5 on the 72
            positions, in pixels.
        scores (Tensor): (N,).
        thresh (float): Lanes with a smaller distance, in pixels, are close.
        top_k (int): Maximum number of lanes to keep.

    Returns:
        list[Tensor]: int64 tensors: indices of the kept lanes by decreasing score, (N,), with
        zeros after the last; their number, (); for each lane the 1-based rank of the last kept
        lane that it is close to, or its own if it is kept, (N,), 0 if there is none.

    Raises:
        ValueError: If the lanes do not have 77 columns.
    """
    if boxes.size(1) != FIRST + OFFSETS:
        raise ValueError(
            f'line_nms: lanes need {FIRST + OFFSETS} columns, {OFFSETS} of them positions, '
            f'but have {boxes.size(1)}'
        )
    boxes, scores = at_least_float32(boxes, scores)
    order = scores.argsort(descending=True, stable=True)
    close = _are_close(boxes[order], thresh)
    left = torch.ones_like(order, dtype=torch.bool)
    parents = torch.zeros_like(order)
    kept: list[int] = []
    for rank in range(len(order)):
        if len(kept) == top_k:
            break
        if left[rank]:
            kept.append(rank)
            near = close[rank].clone()
            near[:rank] = False
            left &= ~near
            near[rank] = True
            parents[near] = len(kept)
    keep = torch.zeros_like(order)
    keep[: len(kept)] = order[kept]
    return [
        keep,
        order.new_tensor(len(kept)),
        torch.zeros_like(parents).scatter_(0, order, parents),
    ]


def _are_close(lanes: Tensor, thresh: float) -> Tensor:
    """Return which pairs of lanes are close, (N, N)."""
    start = (lanes[:, 2] * (OFFSETS - 1) + 0.5).int()
    end = start + lanes[:, 4].int() - 1
    first = torch.maximum(start[:, None], start)
    last = torch.minimum(end[:, None], end).clamp(max=OFFSETS - 1)
    height = torch.arange(OFFSETS, device=lanes.device)
    common = (height >= first[..., None]) & (height <= last[..., None])
    position = lanes[:, FIRST:]
    distance = ((position[:, None] - position).abs() * common).sum(-1)
    return (first >= 0) & (last >= first) & (distance < thresh * (last - first + 1))
