"""Deformable RoI pooling (Dai et al., 2017, section 2.2): RoIAlign with an offset for each bin.

RoIs, features and outputs are those of :mod:`.roi`. ``offset`` has shape (K, 2, rows of bins,
columns of bins), x before y, or is empty for no offset. A bin is moved by ``gamma`` times its
offset times the width or height of its RoI. Types are float32 and float64; half precision is
computed in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .precision import at_least_float32
from .roi import check_rois, check_samples, corner_pixels, pixel_rows

ROIS_AT_ONCE = 64  # bounds the memory for samples: 30 MB for 49 bins of 9 samples, 256 channels


class _Samples(NamedTuple):
    """The samples of all bins of some RoIs, one after the other; each tensor has shape (S,)."""

    image: Tensor
    bin: Tensor  # counted through all RoIs
    share: Tensor  # weight in the average of the bin
    y: Tensor
    x: Tensor


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Take the average of bilinear samples in each moved bin of each RoI.

    Args:
        input (Tensor): (N, C, H, W).
        rois (Tensor): (K, 5).
        offset (Tensor): (K, 2, pooled_height, pooled_width), or empty.
        output (Tensor): (K, C, pooled_height, pooled_width), written.
        pooled_height (int): Number of rows of bins.
        pooled_width (int): Number of columns of bins.
        spatial_scale (float): Size of the feature map divided by the size of the image.
        sampling_ratio (int): Number of samples along each side of a bin; 0: one per pixel.
        gamma (float): Factor of the offsets.

    Raises:
        ValueError: If an RoI is not finite, far larger than its map, or of an image that is not
            there; only on the CPU.
    """
    features, boxes, offset = at_least_float32(input, rois, offset)
    _check(features, boxes, (pooled_height, pooled_width), spatial_scale, sampling_ratio)
    offset = _or_zeros(offset, boxes, (pooled_height, pooled_width))
    pixels = pixel_rows(features)
    height, width = features.shape[2:]
    for part in torch.arange(len(boxes)).split(ROIS_AT_ONCE):
        samples = _samples(boxes[part], offset[part], spatial_scale, sampling_ratio, gamma)
        bins = pixels.new_zeros(len(part) * pooled_height * pooled_width, features.size(1))
        for row, column, weight in corner_pixels(samples.y, samples.x, (height, width)):
            values = pixels[(samples.image * height + row) * width + column]
            bins.index_add_(0, samples.bin, values * (weight * samples.share)[:, None])
        by_roi = bins.view(len(part), pooled_height, pooled_width, features.size(1))
        output[part] = by_roi.permute(0, 3, 1, 2).to(output.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of input and offset to ``grad_input`` and ``grad_offset``.

    A sample up to a pixel outside of the map has the value of the nearest border, so that it does
    not change with its offset. As in mmcv, its offset has the gradient of the interpolation
    between the pixels next to this border, continued.
    """
    grad, features, boxes, offset = at_least_float32(grad_output, input, rois, offset)
    _check(features, boxes, (pooled_height, pooled_width), spatial_scale, sampling_ratio)
    offset = _or_zeros(offset, boxes, (pooled_height, pooled_width))
    pixels = pixel_rows(features)
    total = torch.zeros_like(pixels)
    slopes = torch.zeros_like(offset)
    height, width = features.shape[2:]
    for part in torch.arange(len(boxes)).split(ROIS_AT_ONCE):
        samples = _samples(boxes[part], offset[part], spatial_scale, sampling_ratio, gamma)
        of_bins = grad[part].permute(0, 2, 3, 1).flatten(0, 2)
        of_samples = of_bins[samples.bin] * samples.share[:, None]
        corners = list(corner_pixels(samples.y, samples.x, (height, width)))
        by_weight = []  # the derivative of the loss by the weight of each corner
        for row, column, weight in corners:
            index = (samples.image * height + row) * width + column
            total.index_add_(0, index, of_samples * weight[:, None])
            by_weight.append((of_samples * pixels[index]).sum(1))
        top_left, top_right, bottom_left, bottom_right = by_weight
        (top, left, _), _, _, (bottom, right, _) = corners
        by_x = (top_right - top_left) * (bottom - samples.y)
        by_x += (bottom_right - bottom_left) * (samples.y - top)
        by_y = (bottom_left - top_left) * (right - samples.x)
        by_y += (bottom_right - top_right) * (samples.x - left)
        # The weights of a sample add up to 1, or to 0 if it is further outside.
        inside = torch.stack([weight for *_, weight in corners]).sum(0)
        by_place = torch.stack([by_x, by_y], 1) * inside[:, None]
        by_bin = slopes.new_zeros(len(of_bins), 2).index_add_(0, samples.bin, by_place)
        slopes[part] = by_bin.view(len(part), pooled_height, pooled_width, 2).permute(0, 3, 1, 2)
    grad_input.copy_(total.view(len(features), height, width, features.size(1)).permute(0, 3, 1, 2))
    if grad_offset.numel():
        grad_offset.copy_(slopes * (gamma * _sides(boxes, spatial_scale))[..., None, None])


def _check(
    features: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> None:
    check_rois('deform_roi_pool', boxes, features, spatial_scale)
    if sampling_ratio <= 0:
        check_samples('deform_roi_pool', boxes, _sides(boxes, spatial_scale), features, size)


def _or_zeros(offset: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    return offset if offset.numel() else boxes.new_zeros(len(boxes), 2, *size)


def _sides(boxes: Tensor, spatial_scale: float) -> Tensor:
    """Return width and height of each RoI on the map, (K, 2)."""
    corners = boxes[:, 1:] * spatial_scale - 0.5
    return corners[:, 2:] - corners[:, :2]


def _samples(
    boxes: Tensor, offset: Tensor, spatial_scale: float, sampling_ratio: int, gamma: float
) -> _Samples:
    """Divide each moved bin into equal parts with a sample in the center of each."""
    sides = _sides(boxes, spatial_scale)
    rows, columns = offset.shape[2:]
    bin_size = sides / sides.new_tensor([columns, rows])
    place = torch.cartesian_prod(
        torch.arange(rows, device=boxes.device), torch.arange(columns, device=boxes.device)
    ).flip(1)
    starts = boxes[:, None, 1:3] * spatial_scale - 0.5
    starts = starts + gamma * sides[:, None] * offset.flatten(2).transpose(1, 2)
    starts = (starts + place * bin_size[:, None]).flatten(0, 1)  # (K * bins, 2)

    grid = bin_size.ceil().clamp(min=0)
    if sampling_ratio > 0:
        grid = torch.full_like(bin_size, sampling_ratio)
    # The number of samples differs from RoI to RoI.
    counts = grid.prod(1).long().repeat_interleave(rows * columns)
    bin = torch.arange(len(counts), device=boxes.device).repeat_interleave(counts)
    number = torch.arange(len(bin), device=boxes.device) - (counts.cumsum(0) - counts)[bin]
    roi = bin // (rows * columns)
    grid = grid[roi]
    index = torch.stack([number % grid[:, 0], number.div(grid[:, 0], rounding_mode='floor')], 1)
    x, y = (starts[bin] + (index + 0.5) * bin_size[roi] / grid).unbind(1)
    return _Samples(boxes[roi, 0].long(), bin, 1 / counts[bin].to(x.dtype), y, x)
