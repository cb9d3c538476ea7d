"""CARAFE: content-aware reassembly of features (Wang et al., 2019, section 3.2, eq. 4).

An output pixel is the weighted sum of the k x k neighbors of its source pixel, with the weights
that are predicted for it. Shapes: features (N, C, H, W); masks (N, groups * k * k, sH, sW), the
weights of each group of channels; output (N, C, sH, sW). ``kernel_size`` k is odd,
``scale_factor`` s and ``group_size``, the number of groups, are 1 or more. Types are float32 and
float64; half precision is computed in float32.

The loop over the k * k neighbors keeps the memory at a few outputs; ``unfold`` would take k * k.
"""

from collections.abc import Iterator
from itertools import product

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the reassembled features to ``output``."""
    features, masks = at_least_float32(features, masks)
    padded = _pad(features, kernel_size)
    weights = _by_source(masks, group_size, scale_factor)
    total = _by_source(features.new_zeros(output.shape), group_size, scale_factor)
    for neighbor, window in enumerate(_windows(padded, kernel_size, group_size)):
        total.addcmul_(window, weights[:, :, neighbor, None])
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks to ``bottom_grad`` and ``mask_grad``.

    ``top_grad`` is the gradient of the output, (N, C, sH, sW).
    """
    top_grad, features, masks = at_least_float32(top_grad, features, masks)
    padded = _pad(features, kernel_size)
    padded_grad = padded.new_zeros(padded.shape)
    grad = _by_source(top_grad, group_size, scale_factor)
    weights = _by_source(masks, group_size, scale_factor)
    written = _by_source(mask_grad, group_size, scale_factor)
    windows = _windows(padded, kernel_size, group_size)
    window_grads = _windows(padded_grad, kernel_size, group_size)
    for neighbor, (window, window_grad) in enumerate(zip(windows, window_grads)):
        window_grad += (grad * weights[:, :, neighbor, None]).sum((4, 6), keepdim=True)
        written[:, :, neighbor] = (grad * window).sum(2)
    edge = kernel_size // 2
    height, width = features.shape[2:]
    bottom_grad.copy_(padded_grad[:, :, edge : edge + height, edge : edge + width])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the reassembled features to ``output``.

    mmcv gives ``rfeatures``, scratch memory in the shape of ``features``, to
    :func:`carafe_backward` in their place; they are kept there. ``routput`` and ``rmasks`` are not
    used.
    """
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)
    rfeatures.copy_(features)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks to ``bottom_grad`` and ``mask_grad``.

    ``rtop_grad``, ``rbottom_grad_hs``, ``rbottom_grad`` and ``rmask_grad`` are scratch memory of
    mmcv's algorithm and are not used.
    """
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )


def _pad(features: Tensor, kernel_size: int) -> Tensor:
    """Surround the features with zeros, so that every pixel has all of its neighbors."""
    return F.pad(features, [kernel_size // 2] * 4)


def _windows(padded: Tensor, kernel_size: int, groups: int) -> Iterator[Tensor]:
    """Yield a view of the same neighbor of all source pixels, (N, groups, C / groups, H, 1, W, 1).

    The neighbors come row by row.
    """
    height, width = (side - kernel_size + 1 for side in padded.shape[2:])
    grouped = padded.unflatten(1, (groups, -1))
    for row, column in product(range(kernel_size), repeat=2):
        yield grouped[..., row : row + height, None, column : column + width, None]


def _by_source(maps: Tensor, groups: int, scale: int) -> Tensor:
    """View maps (N, groups * c, sH, sW) as (N, groups, c, H, s, W, s)."""
    return maps.unflatten(1, (groups, -1)).unflatten(4, (-1, scale)).unflatten(3, (-1, scale))
