"""Deformable convolution (Dai et al., 2017, eq. 2), also modulated (Zhu et al., 2019, eq. 1).

Shapes: input (N, C_in, H, W); weight (C_out, C_in / group, kH, kW); offset (N, 2 * deformable_group
* kH * kW, H_out, W_out), in pixels, y before x for each kernel position; mask (N, deformable_group
* kH * kW, H_out, W_out). Types are float32 and float64; half precision is computed in float32.

mmcv's modulated form assumes that offset and mask have the size of the output. DyHead passes larger
ones, of which mmcv reads the first values of each image, and so do these functions.

``columns``, ``ones`` and ``im2col_step`` belong to mmcv's algorithm and do not change the results.
"""

from math import prod

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from .precision import at_least_float32

FAR = 1e9  # pixels, outside of any map


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the deformable convolution to ``output``, (N, C_out, H_out, W_out).

    ``dH`` and ``dW`` are the stride, ``padH`` and ``padW`` the zero padding.
    """
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            *_operands(input, weight, offset),
            dH,
            dW,
            padH,
            padW,
            dilationH,
            dilationW,
            group,
            deformable_group,
            False,
        )
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of input and offset to ``gradInput`` and ``gradOffset``.

    torchvision computes the gradient of the weight at the same time. It is kept in ``columns``, the
    scratch memory that mmcv passes to :func:`deform_conv_backward_parameters`.
    """
    grads = torch.ops.torchvision._deform_conv2d_backward(
        *at_least_float32(gradOutput),
        *_operands(input, weight, offset),
        dH,
        dW,
        padH,
        padW,
        dilationH,
        dilationW,
        group,
        deformable_group,
        False,
    )
    moves = _moves(offset, (kH, kW), (dH, dW), (padH, padW), (dilationH, dilationW))
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2].where(moves, 0))
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of the weight to ``gradWeight``."""
    if not columns.numel():  # neither input nor offset needed a gradient
        # The gradient of the weight does not depend on the weight, so any weight will do.
        deform_conv_backward_input(
            input,
            offset,
            gradOutput,
            torch.empty_like(input),
            torch.empty_like(offset),
            gradWeight,
            columns,
            kW,
            kH,
            dW,
            dH,
            padW,
            padH,
            dilationW,
            dilationH,
            group,
            deformable_group,
            im2col_step,
        )
    gradWeight.add_(columns, alpha=scale)
    columns.resize_(0)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the modulated deformable convolution to ``output``, (N, C_out, H_out, W_out).

    ``bias`` has shape (C_out,). It is only used if ``with_bias``.
    """
    offset, mask = _read_part(offset, mask, deformable_group * kernel_h * kernel_w, output)
    operands = _operands(input, weight, offset, mask, bias if with_bias else None)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(
            *operands,
            stride_h,
            stride_w,
            pad_h,
            pad_w,
            dilation_h,
            dilation_w,
            group,
            deformable_group,
            True,
        )
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradient of each input to the ``grad_`` tensor with its name."""
    offset, mask = _read_part(offset, mask, deformable_group * kernel_h * kernel_w, grad_output)
    grads = torch.ops.torchvision._deform_conv2d_backward(
        *at_least_float32(grad_output),
        *_operands(input, weight, offset, mask),
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        deformable_group,
        True,
    )
    moves = _moves(
        offset,
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
    )
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    for written, grad in ((grad_offset, grads[2].where(moves, 0)), (grad_mask, grads[3])):
        unread = written[0].numel() - grad[0].numel()
        written.copy_(F.pad(grad.flatten(1), (0, unread)).view(written.shape))
    if with_bias:
        grad_bias.copy_(grads[4])


def _read_part(
    offset: Tensor, mask: Tensor, positions: int, output: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the first values of each image, as many as maps of the output's size have."""
    shapes = [(channels, *output.shape[2:]) for channels in (2 * positions, positions)]
    return tuple(
        field.flatten(1)[:, : prod(shape)].unflatten(1, shape)
        for field, shape in zip((offset, mask), shapes)
    )


def _moves(
    offset: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return which offsets have a gradient, in the shape of ``offset``; all pairs are y, x.

    The value of a sample exactly one pixel before the map, in y or x, is 0. Its derivative by this
    coordinate is 0 in one direction and not in the other. mmcv takes the 0, torchvision the other.
    With padding, the first step of a layer whose offsets begin at 0 has many such samples.
    """
    (offset,) = at_least_float32(offset)
    by_tap = offset.unflatten(1, (-1, *kernel, 2))
    taps_y, taps_x = (
        torch.arange(count, device=offset.device) * step for count, step in zip(kernel, dilation)
    )
    rows, columns = (
        torch.arange(count, device=offset.device) * step - before
        for count, step, before in zip(offset.shape[2:], stride, padding)
    )
    y = by_tap[..., 0, :, :] + (taps_y[:, None, None, None] + rows[:, None])
    x = by_tap[..., 1, :, :] + (taps_x[:, None, None] + columns)
    return torch.stack([y, x], 4).ne(-1).view(offset.shape)


def _operands(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[Tensor]:
    """Return the inputs of torchvision's op, with zeros for a missing mask or bias.

    A sample whose offset is NaN lies outside of the map, as in mmcv; torchvision's kernel would
    read memory that is not the map's, and end the process.
    """
    input, weight, offset = at_least_float32(input, weight, offset)
    offset = offset.nan_to_num(nan=FAR).clamp(-FAR, FAR)
    if mask is None:
        mask = input.new_zeros(input.size(0), 1)
    if bias is None:
        bias = input.new_zeros(weight.size(0))
    return at_least_float32(input, weight, offset, mask, bias)
