"""Multi-scale deformable attention (Zhu et al., 2021, eq. 3), one level at a time.

Shapes: value (N, keys, heads, dim), the levels' maps one after another, each row by row;
sampling_loc (N, queries, heads, levels, points, 2), x before y, 0 to 1 over a map;
attn_weight (N, queries, heads, levels, points). float32 and float64; half precisions are computed
in float32. ``im2col_step`` belongs to mmcv's own algorithm and does not change a result.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor, sampling_locations: Tensor,
                           attention_weights: Tensor, im2col_step: int) -> Tensor:
    """Sum bilinear samples of the values, weighted, over levels and points.

    Args:
        value_spatial_shapes (Tensor): (levels, 2), h and w of each level.
        value_level_start_index (Tensor): (levels,), the first key of each level.

    Returns:
        Tensor: (N, queries, heads * dim).
    """
    tensors = at_least_float32(value, sampling_locations, attention_weights)
    levels = _levels(value_spatial_shapes, value_level_start_index)
    return sum(_attend(*_of_level(tensors, level, keys), size)
               for level, (keys, size) in enumerate(levels)).to(value.dtype)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor,
                            value_level_start_index: Tensor, sampling_locations: Tensor,
                            attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor,
                            grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """The gradients of :func:`ms_deform_attn_forward`, written to the three ``grad_`` tensors."""
    *tensors, grad_output = at_least_float32(value, sampling_locations, attention_weights,
                                             grad_output)
    written = grad_value, grad_sampling_loc, grad_attn_weight
    levels = _levels(value_spatial_shapes, value_level_start_index)
    for level, (keys, size) in enumerate(levels):
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in _of_level(tensors, level, keys)]
            output = _attend(*inputs, size)
        grads = torch.autograd.grad(output, inputs, grad_output)
        for target, grad in zip(_of_level(written, level, keys), grads):
            target.copy_(grad)


def _levels(spatial_shapes: Tensor, level_start_index: Tensor) -> list[tuple[slice, list[int]]]:
    """The keys and the (h, w) of each level."""
    sizes = spatial_shapes.tolist()
    starts = level_start_index.tolist()
    return [(slice(start, start + h * w), [h, w]) for start, (h, w) in zip(starts, sizes)]


def _of_level(tensors: tuple[Tensor, Tensor, Tensor], level: int,
              keys: slice) -> tuple[Tensor, Tensor, Tensor]:
    """One level of a value, sampling locations and attention weights, as views."""
    value, locations, weights = tensors
    return value[:, keys], locations[:, :, :, level], weights[:, :, :, level]


def _attend(value: Tensor, locations: Tensor, weights: Tensor, size: list[int]) -> Tensor:
    """One level's share of the output, (N, queries, heads * dim)."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
    grid = 2 * locations.transpose(1, 2).flatten(0, 1) - 1
    samples = F.grid_sample(maps, grid, align_corners=False)  # (N * heads, dim, queries, points)
    output = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
