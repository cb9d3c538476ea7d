"""Adaptive average pooling that ONNX can hold for images of every size, see docs/export.md."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Compute :func:`torch.nn.functional.adaptive_avg_pool2d` as two matrix products.

    ONNX export turns PyTorch's function, which UPerNet's head uses, into pooling for the traced
    size alone, without a warning.

    Args:
        x (Tensor): Shape (N, C, H, W).
        output_size (Sequence[int]): H' and W'.

    Returns:
        Tensor: Shape (N, C, H', W').
    """
    weights = []
    for side, size in zip(x.shape[2:], output_size, strict=True):
        cell = torch.arange(size, device=x.device)[:, None]
        position = torch.arange(side, device=x.device)
        first, end = cell * side // size, ((cell + 1) * side + size - 1) // size
        within = (position >= first) & (position < end)
        weights.append(within / within.sum(1, keepdim=True))
    rows, cols = weights
    return rows.to(x) @ x @ cols.t().to(x)
