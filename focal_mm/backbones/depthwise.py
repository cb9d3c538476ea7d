"""Depth-wise convolution, with a gradient of its own.

Nearly all of a focal network's training time on a CPU was the gradient of these kernels.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Largest tile, rows x columns, and the floats of input that are gathered at once. Measured on two
# cores, 96 x 128 x 128, batch of 2, kernel 13: 18 ms; PyTorch's own: 125 ms, in NCHW 370 ms.
TILE = (32, 16)
GATHERED = 1 << 20


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts tensors as autocast would for a convolution or a linear layer; a
    :class:`torch.autograd.Function` has to do it itself."""
    device = tensors[0].device.type
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype == torch.double else t.to(dtype) for t in tensors)


def wants_grad(*tensors: Tensor) -> bool:
    """Whether what is computed from tensors takes part in a backward pass."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class DepthwiseConv2d(torch.autograd.Function):
    """:func:`convolve` with the gradients below."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return input_gradient(x, weight, grad), weight_gradient(x, grad, weight.shape[-1])


def depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolves each channel with a kernel of its own, stride 1, zero-padded to the same size.

    Args:
        x (Tensor): (N, C, H, W), fastest in the channels-last memory format.
        weight (Tensor): (C, 1, k, k), k odd.

    Returns:
        Tensor: (N, C, H, W).
    """
    if wants_grad(x, weight) and not torch.jit.is_tracing():
        return DepthwiseConv2d.apply(*autocast(x, weight))
    return convolve(x, weight)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """What :func:`depthwise_conv2d` computes."""
    height, width = weight.shape[2:]
    margin = 0
    exported = torch.jit.is_tracing() or (
        torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling())
    if x.device.type == 'cpu' and 11 <= width <= 13 and not exported:
        # oneDNN's channels-last kernel takes 44 ms for 13 x 13 (96 channels, 200 x 304) and 20 ms
        # for 13 x 15: from a width of 14 on it goes another way. For 9 and less it would not pay.
        margin = (15 - width) // 2
        weight = F.pad(weight, (margin, margin))
    return F.conv2d(x, weight, padding=(height // 2, width // 2 + margin), groups=len(weight))


def input_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient of :func:`depthwise_conv2d` with respect to its input."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [side // 2 for side in weight.shape[2:]], [1, 1], False,
        [0, 0], len(weight), [True, False, False])[0]


@torch.library.custom_op('focal_mm::depthwise_weight_gradient', mutates_args=())
def weight_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """The gradient of :func:`depthwise_conv2d` with respect to its kernels.

    It is a depth-wise convolution too: every tile of the output's gradient is a kernel that
    slides over the tile of the input that it has seen. All tiles of all channels together are the
    channels of one convolution, for which fast code exists.

    Args:
        x (Tensor): The input, (N, C, H, W).
        grad (Tensor): Gradient of the output, of the same shape.
        kernel (int): Side k of the kernels.

    Returns:
        Tensor: (C, 1, k, k).
    """
    count, channels, height, width = x.shape
    if x.device.type != 'cpu' or kernel == 1 or (kernel == 3 and x.dtype == torch.float):
        weight = x.new_empty(channels, 1, kernel, kernel)
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], channels,
            [False, True, False])[1]
    rows, columns = -(-height // TILE[0]), -(-width // TILE[1])
    tile_h, tile_w = -(-height // rows), -(-width // columns)
    below, right = rows * tile_h - height, columns * tile_w - width
    halo = kernel // 2
    x = F.pad(x, (halo, halo + right, halo, halo + below)).permute(2, 3, 0, 1)
    x = x.unfold(0, tile_h + kernel - 1, tile_h).unfold(1, tile_w + kernel - 1, tile_w)
    x = x.permute(4, 5, 2, 0, 1, 3)  # height and width of a tile, image, row, column, channel
    if below or right:
        grad = F.pad(grad, (0, right, 0, below))
    grad = grad.permute(0, 2, 3, 1).reshape(count, rows, tile_h, columns, tile_w, channels)

    at_once = max(1, GATHERED // (x.shape[0] * x.shape[1] * columns * channels))
    images, some_rows = max(1, at_once // rows), min(rows, at_once)
    total = x.new_zeros(channels, kernel, kernel, dtype=torch.promote_types(x.dtype, torch.float))
    for image in range(0, count, images):
        for row in range(0, rows, some_rows):
            tiles = x[:, :, image:image + images, row:row + some_rows].flatten(2)[None]
            kernels = grad[image:image + images, row:row + some_rows]
            kernels = kernels.permute(0, 1, 3, 5, 2, 4).reshape(-1, 1, tile_h, tile_w)
            part = F.conv2d(tiles.permute(0, 3, 1, 2), kernels, groups=len(kernels))
            total += part.view(-1, channels, kernel, kernel).sum(0, dtype=total.dtype)
    return total[:, None].to(x.dtype)


@weight_gradient.register_fake
def _(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel, kernel)
