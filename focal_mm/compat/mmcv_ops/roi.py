"""RoIAlign (He et al., 2017, section 3) and RoIPool (Girshick, 2015, section 2.1).

Every RoI is a row (image index, x1, y1, x2, y2) in image coordinates, which are multiplied by
``spatial_scale`` to get coordinates of the feature map. Features have shape (N, C, H, W), outputs
(K, C, rows of bins, columns of bins) for K RoIs; K may be 0. Types are float32 and float64; half
precision is computed in float32.
"""

from collections.abc import Iterator

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .precision import at_least_float32

MAX = 0  # pool_mode of the maximum; 1 is the average
EMPTY_BIN = -1e4  # maximum over no samples, as in mmcv's CPU kernel
# Samples of one RoI that are computed even if its map has fewer pixels; the CPU's kernel stores 32
# bytes for each.
MOST_SAMPLES = 1 << 24


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Take the average or maximum of bilinear samples in each bin of each RoI.

    Args:
        input (Tensor): (N, C, H, W).
        rois (Tensor): (K, 5).
        output (Tensor): (K, C, aligned_height, aligned_width), written.
        argmax_y (Tensor): Same shape as ``output``, written for the maximum: row of the largest
            sample on the feature map, -1 for a bin without samples.
        argmax_x (Tensor): Column of the largest sample, written like ``argmax_y``.
        aligned_height (int): Number of rows of bins.
        aligned_width (int): Number of columns of bins.
        spatial_scale (float): Size of the feature map divided by the size of the image.
        sampling_ratio (int): Number of samples along each side of a bin; 0: one per pixel.
        pool_mode (int): 0: maximum, 1: average.
        aligned (bool): Shift RoIs by half a pixel, so that pixel centers have integer coordinates,
            and do not enlarge RoIs that are smaller than a pixel.

    Raises:
        ValueError: If an RoI is not finite, far larger than its map, of an image that is not there,
            or, when aligned, ends before it begins; only on the CPU, where mmcv stops at the last
            of these and the others end the process.
    """
    features, boxes = at_least_float32(input, rois)
    check_rois('roi_align', boxes, features, spatial_scale)
    corners = boxes[:, 1:] * spatial_scale
    sides = corners[:, 2:] - corners[:, :2]
    if aligned and _can_look_at(boxes):
        _refuse('roi_align', boxes, (sides < 0).any(1), 'ends before it begins')
    if sampling_ratio <= 0:
        check_samples('roi_align', boxes, sides, features, (aligned_height, aligned_width))
    if pool_mode != MAX:
        output.copy_(
            torch.ops.torchvision.roi_align(
                features,
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )
        return
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "roi_align: pool_mode='max' cannot be exported, as the maximum of ONNX is another; "
            "use pool_mode='avg'"
        )
    height, width = input.shape[2:]
    pixels = pixel_rows(features)
    corners = boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0)
    sizes = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1)
    bins = sizes / sizes.new_tensor([aligned_width, aligned_height])
    grids = torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    # The number of samples differs from RoI to RoI, hence the loop.
    for k, (image, (grid_w, grid_h)) in enumerate(
        zip(rois[:, 0].int().tolist(), grids.int().tolist())
    ):
        if grid_w <= 0 or grid_h <= 0:
            output[k], argmax_y[k], argmax_x[k] = EMPTY_BIN, -1, -1
            continue
        y = _sample_positions(corners[k, 1], bins[k, 1], aligned_height, grid_h)[:, None, :, None]
        x = _sample_positions(corners[k, 0], bins[k, 0], aligned_width, grid_w)[None, :, None, :]
        first, *others = [
            weight[..., None] * _gather(pixels, (image * height + row) * width + column)
            for row, column, weight in corner_pixels(y, x, (height, width))
        ]
        output[k], argmax_y[k], argmax_x[k] = _largest(sum(others, first), y, x)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Compute the gradient of :func:`roi_align_forward` with respect to its ``input``.

    Args:
        grad_output (Tensor): (K, C, aligned_height, aligned_width).
        grad_input (Tensor): (N, C, H, W), written.

    The other arguments are those of the forward pass.
    """
    grad, boxes = at_least_float32(grad_output, rois)
    check_rois('roi_align', boxes, grad_input, spatial_scale)
    if pool_mode != MAX:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad,
                boxes,
                spatial_scale,
                aligned_height,
                aligned_width,
                *grad_input.shape,
                sampling_ratio,
                aligned,
            )
        )
        return
    y, x = at_least_float32(argmax_y, argmax_x)
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    total = grad.new_zeros(grad_input.numel())
    grad = grad.where(y != -1, 0)
    for row, column, weight in corner_pixels(y, x, (height, width)):
        pixel = (plane[..., None, None] * height + row) * width + column
        total.scatter_add_(0, pixel.flatten(), (grad * weight).flatten())
    grad_input.copy_(total.view_as(grad_input))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum of the pixels that each bin of each RoI touches.

    As in mmcv, x2 and y2 are inclusive and RoIs are not rounded to pixels. torchvision's roi_pool
    rounds them.

    Args:
        input (Tensor): (N, C, H, W).
        rois (Tensor): (K, 5).
        output (Tensor): (K, C, pooled_height, pooled_width), written; 0 for an empty bin.
        argmax (Tensor): Same shape as ``output``, int32, written: row * W + column of the maximum,
            -1 for an empty bin.
        pooled_height (int): Number of rows of bins.
        pooled_width (int): Number of columns of bins.
        spatial_scale (float): Size of the feature map divided by the size of the image.

    Raises:
        ValueError: If an RoI is not finite or of an image that is not there; only on the CPU.
    """
    features, boxes = at_least_float32(input, rois)
    check_rois('roi_pool', boxes, features, spatial_scale)
    height, width = input.shape[2:]
    pixels = pixel_rows(features)
    rows, has_row = _touched_pixels(boxes[:, 2], boxes[:, 4], spatial_scale, pooled_height, height)
    columns, has_column = _touched_pixels(
        boxes[:, 1], boxes[:, 3], spatial_scale, pooled_width, width
    )
    for k, image in enumerate(rois[:, 0].int().tolist()):
        position = rows[k][:, None, :, None] * width + columns[k][None, :, None, :]
        inside = has_row[k][:, None, :, None] & has_column[k][None, :, None, :]
        values = _gather(pixels, image * height * width + position)
        largest, position = _largest(values.where(inside[..., None], -torch.inf), position)
        empty = ~inside.flatten(-2).any(-1)
        output[k] = largest.masked_fill(empty, 0)
        argmax[k] = position.masked_fill(empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the gradient of :func:`roi_pool_forward` with respect to its ``input``.

    Args:
        grad_output (Tensor): (K, C, pooled_height, pooled_width).
        grad_input (Tensor): (N, C, H, W), written.

    The other arguments are those of the forward pass.
    """
    grad, boxes = at_least_float32(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(
            grad, boxes, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
        )
    )


def check_rois(op: str, boxes: Tensor, features: Tensor, spatial_scale: float) -> None:
    """Refuse RoIs from which a kernel on the CPU would compute addresses outside of the map.

    Raises:
        ValueError: Naming the first of them.
    """
    if not _can_look_at(boxes):
        return
    corners = boxes[:, 1:] * spatial_scale
    # Sides of finite corners may be infinite.
    finite = torch.cat([boxes[:, :1], corners, corners[:, 2:] - corners[:, :2]], 1).isfinite()
    _refuse(op, boxes, ~finite.all(1), 'is not finite')
    outside = (boxes[:, 0] < 0) | (boxes[:, 0] >= len(features))
    _refuse(op, boxes, outside, f'is of an image that is not among {len(features)}')


def check_samples(
    op: str, boxes: Tensor, sides: Tensor, features: Tensor, bins: tuple[int, int]
) -> None:
    """Refuse RoIs that are so large that their samples, one per pixel, would fill the memory.

    Args:
        op (str): Name of the op, for the message.
        boxes (Tensor): (K, 5), the RoIs.
        sides (Tensor): (K, 2), their widths and heights on the map.
        features (Tensor): (N, C, H, W).
        bins (tuple[int, int]): Numbers of rows and columns of bins.

    Raises:
        ValueError: Naming the first of them; only on the CPU.
    """
    if not _can_look_at(boxes):
        return
    most = max(MOST_SAMPLES, 4 * features.shape[2] * features.shape[3])
    columns_rows = sides.new_tensor(bins[::-1], dtype=torch.double)
    samples = ((sides.double() / columns_rows).ceil().clamp(min=1) * columns_rows).prod(1)
    _refuse(op, boxes, samples > most, 'is far larger than its map')


def _can_look_at(boxes: Tensor) -> bool:
    """Return whether the values are there: not in a graph, and on a GPU only after a wait."""
    return boxes.is_cpu and not torch.compiler.is_compiling()


def _refuse(op: str, boxes: Tensor, wrong: Tensor, what: str) -> None:
    """Raise a ValueError if any RoI is wrong."""
    if wrong.any():
        number = int(wrong.nonzero()[0])
        raise ValueError(
            f'{op}: RoI {number} (image, x1, y1, x2, y2) = {boxes[number].tolist()} {what}'
        )


def _sample_positions(start: Tensor, bin_size: Tensor, bins: int, samples: int) -> Tensor:
    """Return the coordinates of samples in one axis of an RoI, (bins, samples).

    Each bin is divided into equal parts with a sample in the center of each.
    """
    index = torch.arange(bins, device=start.device)[:, None]
    share = torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5
    return start + index * bin_size + share * bin_size / samples


def corner_pixels(
    y: Tensor, x: Tensor, size: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield row, column and weight of the four pixels for bilinear interpolation at (y, x).

    Up to one pixel outside of the map the border pixel counts; further out all weights are 0.
    """
    inside = torch.tensor(True, device=y.device)
    sides = []
    for position, length in ((y, size[0]), (x, size[1])):
        inside = inside & (position >= -1) & (position <= length)
        position = position.clamp(0, length - 1)
        low = position.long()
        part = position - low
        sides.append(((low, 1 - part), ((low + 1).clamp(max=length - 1), part)))
    for row, row_weight in sides[0]:
        for column, column_weight in sides[1]:
            yield row, column, row_weight * column_weight * inside


def _touched_pixels(
    first: Tensor, last: Tensor, spatial_scale: float, bins: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return the pixels from the floor of each bin's start to the ceiling of its end, in one axis.

    Returns:
        tuple: Indices, (K, bins, P), for at most P pixels a bin; and a bool mask of this shape,
        False for indices that pad a smaller bin.
    """
    start = first * spatial_scale
    bin_size = ((last + 1) * spatial_scale - start) / bins
    index = torch.arange(bins, device=first.device)
    low = (index * bin_size[:, None] + start[:, None]).floor().clamp(0, size).long()
    high = ((index + 1) * bin_size[:, None] + start[:, None]).ceil().clamp(0, size).long()
    most = max(1, int((high - low).max())) if low.numel() else 1
    pixels = low[..., None] + torch.arange(most, device=first.device)
    # An RoI of size 0 touches no pixels, although floor and ceiling of its edge may differ.
    return pixels.clamp(max=size - 1), (pixels < high[..., None]) & (bin_size > 0)[:, None, None]


def pixel_rows(features: Tensor) -> Tensor:
    """Rearrange (N, C, H, W) to (N * H * W, C), of which rows can be gathered, which is fast."""
    return features.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def _gather(pixels: Tensor, index: Tensor) -> Tensor:
    return pixels.index_select(0, index.flatten()).unflatten(0, index.shape)


def _largest(values: Tensor, *positions: Tensor) -> tuple[Tensor, ...]:
    """Return the largest value of each bin and its position.

    Args:
        values (Tensor): (rows of bins, columns of bins, rows of samples, columns of samples, C).
        positions (Tensor): Coordinates of the samples; each broadcasts to a channel of ``values``.

    Returns:
        tuple: Largest value, the first if there are several, and its coordinates, each of shape
        (C, rows of bins, columns of bins).
    """
    largest, index = values.flatten(2, 3).max(2)
    found = (p.expand(values.shape[:-1]).flatten(2).take_along_dim(index, 2) for p in positions)
    return tuple(t.permute(2, 0, 1) for t in (largest, *found))
