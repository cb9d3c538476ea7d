"""Rearrangement of point-wise spatial attention (Zhao et al., 2018, section 3.2).

Each pixel of an H x W map predicts attention for a window of ``h_mask`` x ``w_mask`` pixels around
itself, (N, h_mask * w_mask, H, W), row by row. The result, (N, H * W, H, W), has a weight for each
pair of pixels, 0 where the window does not reach. Collecting, entry (n, t, s) is the weight
that pixel s predicts for pixel t, so that s collects what the others hold; distributing, the two
are exchanged. ``half_h_mask`` and ``half_w_mask`` locate the window's center. Any type is fine.
"""

import torch
from torch import Tensor

COLLECT = 0  # psa_type; 1 distributes


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the weight of each pair of pixels to ``output``, (``num_``, H * W, H, W)."""
    y, x = _grid(h_feature, w_feature, input.device)
    row = y[:, None] - y + half_h_mask
    column = x[:, None] - x + half_w_mask
    inside = (row >= 0) & (row < h_mask) & (column >= 0) & (column < w_mask)
    channel = (row * w_mask + column).where(inside, 0)
    pairs = input.flatten(2).gather(1, channel.expand(num_, -1, -1)).where(inside, 0)
    if psa_type != COLLECT:
        pairs = pairs.transpose(1, 2)
    output.copy_(pairs.reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the input to ``grad_input``, (``num_``, h_mask * w_mask, H, W)."""
    y, x = _grid(h_feature, w_feature, grad_output.device)
    row, column = _grid(h_mask, w_mask, grad_output.device)
    row = y + row[:, None] - half_h_mask
    column = x + column[:, None] - half_w_mask
    inside = (row >= 0) & (row < h_feature) & (column >= 0) & (column < w_feature)
    pixel = (row * w_feature + column).where(inside, 0)
    pairs = grad_output.flatten(2)
    if psa_type != COLLECT:
        pairs = pairs.transpose(1, 2)
    grads = pairs.gather(1, pixel.expand(num_, -1, -1)).where(inside, 0)
    grad_input.copy_(grads.reshape(grad_input.shape))


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each pixel of a map, (height * width,) each."""
    pixel = torch.arange(height * width, device=device)
    return pixel // width, pixel % width
