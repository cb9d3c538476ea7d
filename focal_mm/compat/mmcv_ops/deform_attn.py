"""Multi-scale deformable attention (Zhu et al., 2021, eq. 3), one level at a time.

Shapes: value (N, keys, heads, dim), with the maps of all levels one after the other, each row by
row; sampling_locations (N, queries, heads, levels, points, 2), x before y, 0 to 1 across a map;
attention_weights (N, queries, heads, levels, points). Types are float32 and float64; half precision
is computed in float32. ``im2col_step`` belongs to mmcv's algorithm and does not change the results.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum weighted bilinear samples of the values over levels and points.

    Args:
        value_spatial_shapes (Tensor): (levels, 2), height and width of each level.
        value_level_start_index (Tensor): (levels,), first key of each level.

    Returns:
        Tensor: (N, queries, heads * dim).
    """
    tensors = at_least_float32(value, sampling_locations, attention_weights)
    levels = _levels(value_spatial_shapes, value_level_start_index)
    first, *others = [
        _attend(_of_level(tensors, level, keys), size) for level, (keys, size) in enumerate(levels)
    ]
    return sum(others, first).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward` to the three ``grad_`` tensors."""
    *tensors, grad_output = at_least_float32(
        value, sampling_locations, attention_weights, grad_output
    )
    written = [grad_value, grad_sampling_loc, grad_attn_weight]
    levels = _levels(value_spatial_shapes, value_level_start_index)
    for level, (keys, size) in enumerate(levels):
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in _of_level(tensors, level, keys)]
            output = _attend(inputs, size)
        grads = torch.autograd.grad(output, inputs, grad_output)
        for target, grad in zip(_of_level(written, level, keys), grads):
            target.copy_(grad)


def _levels(spatial_shapes: Tensor, level_start_index: Tensor) -> list[tuple[slice, list[int]]]:
    """Return the slice of keys and the [height, width] of each level."""
    sizes = spatial_shapes.tolist()
    starts = level_start_index.tolist()
    return [(slice(start, start + h * w), [h, w]) for start, (h, w) in zip(starts, sizes)]


def _of_level(tensors: list[Tensor], level: int, keys: slice) -> list[Tensor]:
    """Return views of one level of the value, sampling locations and attention weights."""
    value, locations, weights = tensors
    return [value[:, keys], locations[:, :, :, level], weights[:, :, :, level]]


def _attend(tensors: list[Tensor], size: list[int]) -> Tensor:
    """Return the part of the output that comes from one level, (N, queries, heads * dim).

    Args:
        tensors (list[Tensor]): The level's value, sampling locations and attention weights.
        size (list[int]): Height and width of the level.
    """
    value, locations, weights = tensors
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
    grid = 2 * locations.transpose(1, 2).flatten(0, 1) - 1
    samples = F.grid_sample(maps, grid, align_corners=False)  # (N * heads, dim, queries, points)
    output = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
