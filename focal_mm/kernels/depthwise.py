"""Depth-wise convolution with a fast gradient of its kernels.

On a CPU, PyTorch's own gradient took nearly all of the training time of a FocalNet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import (
    autocast,
    autocast_dtype,
    differentiates_again,
    fused_module,
    is_compiled,
    is_fast,
    reference_gradients,
    wants_grad,
)

# Largest tile, rows x columns, and number of input elements that are gathered at once. Measured on
# two cores, 96 x 128 x 128, batch of 2, kernel 13: 18 ms; PyTorch's own: 125 ms, in NCHW 370 ms.
TILE = (32, 16)
GATHERED_ELEMENTS = 1 << 20


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel with a kernel of its own, stride 1, zero-padded to the same size.

    Args:
        x (Tensor): Shape (N, C, H, W), fastest in the channels-last memory format.
        weight (Tensor): Shape (C, 1, k, k), k odd.

    Returns:
        Tensor: Shape (N, C, H, W).
    """
    if may_hang(x, weight):
        return in_single_precision(depthwise_conv, x, weight)
    # torch.compile traces the kernel with its gradient; other graphs have the plain twin.
    if not (is_fast(x, weight) or is_compiled()):
        return depthwise_conv_reference(x, weight)
    if wants_grad(x, weight):
        return _DepthwiseConv.apply(*autocast(x, weight))
    return convolve(x, weight)


def is_half(x: Tensor) -> bool:
    """Return whether a convolution of a tensor is one of half precision on a CPU."""
    return x.device.type == 'cpu' and autocast_dtype(x) in (torch.bfloat16, torch.half)


def may_hang(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN may hang in this convolution: in half precision, with 16 channels or
    fewer and a kernel of 14 columns or more (PyTorch 2.11; in bfloat16 on AVX-512 processors, in
    float16 on those that have it).
    """
    return is_half(x) and _has_few_channels(weight)


def _has_few_channels(weight: Tensor) -> bool:
    return len(weight) <= 16


def in_single_precision(
    kernel: Callable[..., Tensor], x: Tensor, *tensors: Tensor | None
) -> Tensor:
    """Run a kernel in single precision, without autocast, and return its result in the precision
    that autocast would have given.
    """
    dtype = autocast_dtype(x)
    with torch.autocast('cpu', enabled=False):
        single = (None if tensor is None else tensor.float() for tensor in tensors)
        return kernel(x.float(), *single).to(dtype)


def depthwise_conv_reference(x: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`depthwise_conv` in plain PyTorch."""
    return F.conv2d(x, weight, padding=_margins(weight), groups=len(weight))


@fused_module
class DepthwiseConv2d(nn.Conv2d):
    """Depth-wise ``nn.Conv2d`` with an odd kernel, stride 1 and no bias, which keeps the size.

    Args:
        dim (int): Channels C.
        kernel_size (int): Side k of the kernels, odd.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return depthwise_conv(x, self.weight)


def convolve(x: Tensor, weight: Tensor, band: slice = slice(None)) -> Tensor:
    """Compute :func:`depthwise_conv` by the fastest kernel that PyTorch has on this device.

    Args:
        x (Tensor): Shape (N, C, H, W).
        weight (Tensor): Shape (C, 1, k, k).
        band (slice): Rows of the result. Default: all.

    Returns:
        Tensor: Shape (N, C, rows, W).
    """
    if x.device.type == 'cpu':
        weight = widen(weight)
    halo, side = _margins(weight)
    if band != slice(None):
        top, bottom = band.start - halo, min(band.stop, x.shape[2]) + halo
        edges = max(-top, 0), max(bottom - x.shape[2], 0)
        x, halo = F.pad(x[:, :, max(top, 0) : bottom], (0, 0, *edges)), 0
    return F.conv2d(x, weight, padding=(halo, side), groups=len(weight))


def widen(weight: Tensor) -> Tensor:
    """Pad kernels of 11 or 13 columns with zeros to 15 columns.

    oneDNN's channels-last kernel takes 44 ms for 13 x 13 (96 channels, 200 x 304) and 20 ms for
    13 x 15: from a width of 14 on it uses other code. Padding does not pay for widths up to 9, and
    kernels of few channels stay as they are, see :func:`may_hang`; OpenVINO hangs in them, too.

    Args:
        weight (Tensor): Shape (C, 1, k, k).
    """
    if not 11 <= weight.shape[-1] <= 13 or _has_few_channels(weight):
        return weight
    margin = (15 - weight.shape[-1]) // 2
    return F.pad(weight, (margin, margin))


@contextmanager
def widened(net: nn.Module) -> Iterator[None]:
    """Let the layers of a network have kernels as :func:`widen` makes them, within a ``with``
    block: for graphs that run in oneDNN elsewhere (OpenVINO, ONNX Runtime). What is computed stays
    the same.

    Args:
        net (nn.Module): The network, which must not be used elsewhere meanwhile.
    """
    layers = [layer for layer in net.modules() if type(layer) is DepthwiseConv2d]
    weights = [layer.weight for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = nn.Parameter(widen(weight.detach()), weight.requires_grad)
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight


def _margins(weight: Tensor) -> tuple[int, int]:
    """Return the rows and columns of zeros on each side by which a map keeps its size."""
    return weight.shape[2] // 2, weight.shape[3] // 2


def input_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of :func:`depthwise_conv` with respect to its input."""
    return convolve(grad, weight.flip(2, 3))


@torch.library.custom_op('focal_mm::depthwise_weight_gradient', mutates_args=())
def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """Return the gradient of :func:`depthwise_conv` with respect to its kernels.

    The gradient is itself a depth-wise convolution: each tile of the output's gradient is a kernel
    that slides over the tile of the input that the output tile has seen. All tiles of all channels
    together are the channels of one convolution, for which fast code exists.

    Args:
        x (Tensor): The input, shape (N, C, H, W).
        grad (Tensor): Gradient of the output, of the same shape.
        kernel (int): Side k of the kernels.

    Returns:
        Tensor: Shape (C, 1, k, k).
    """
    count, channels, height, width = x.shape
    if x.device.type != 'cpu' or kernel == 1 or (kernel == 3 and x.dtype == torch.float):
        weight = x.new_empty(channels, 1, kernel, kernel)
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], channels,
            [False, True, False])[1]  # fmt: skip
    halo, columns = kernel // 2, -(-width // TILE[1])
    tile_h, tile_w = -(-height // -(-height // TILE[0])), -(-width // columns)
    high, wide = tile_h + kernel - 1, tile_w + kernel - 1
    right = columns * tile_w - width
    images = max(1, GATHERED_ELEMENTS // (high * wide * columns * channels))
    total = x.new_zeros(channels, kernel, kernel, dtype=torch.promote_types(x.dtype, torch.float))
    for image, top in product(range(0, count, images), range(0, height, tile_h)):
        above, below = max(halo - top, 0), max(top + tile_h + halo - height, 0)
        tiles = x[image : image + images, :, max(top - halo, 0) : top + tile_h + halo]
        tiles = F.pad(tiles, (halo, halo + right, above, below)).unfold(3, wide, tile_w)
        tiles = tiles.permute(2, 4, 0, 3, 1).flatten(2)  # of all images, columns and channels
        kernels = grad[image : image + images, :, top : top + tile_h]
        missing = tile_h - kernels.shape[2]
        if right or missing:
            kernels = F.pad(kernels, (0, right, 0, missing))
        kernels = kernels.unfold(3, tile_w, tile_w).permute(0, 3, 1, 2, 4)
        kernels = kernels.reshape(-1, 1, tile_h, tile_w)
        part = F.conv2d(tiles[None].permute(0, 3, 1, 2), kernels, groups=len(kernels))
        total += part.view(-1, channels, kernel, kernel).sum(0, dtype=total.dtype)
    return total[:, None].to(x.dtype)


@weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel, kernel)


class _DepthwiseConv(torch.autograd.Function):
    """:func:`convolve` with :func:`input_gradient` and :func:`weight_gradient`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if differentiates_again(grad):
            return reference_gradients(
                depthwise_conv_reference, (x, weight), grad, ctx.needs_input_grad
            )
        return input_gradient(x, weight, grad), weight_gradient(x, grad, weight.shape[-1])
