"""What ONNX has no operator for, see docs/export.md."""
from collections.abc import Sequence

import torch
from torch import Tensor


def adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """:func:`torch.nn.functional.adaptive_avg_pool2d` as two products, for images of any size.

    PyTorch's own, which UPerNet's head pools by, becomes in ONNX that of the traced size alone,
    without a word.

    Args:
        x (Tensor): Shape (N, C, H, W).
        output_size (Sequence[int]): H' and W'.

    Returns:
        Tensor: Shape (N, C, H', W').
    """
    weights = []
    for side, size in zip(x.shape[2:], output_size):
        cell = torch.arange(size, device=x.device)[:, None]
        place = torch.arange(side, device=x.device)
        within = (place >= cell * side // size) & (place < ((cell + 1) * side + size - 1) // size)
        weights.append(within / within.sum(1, keepdim=True))
    rows, cols = weights
    return rows.to(x) @ x @ cols.t().to(x)
