"""Convolution of maps whose channels are last in memory.

Where a graph has a convolution, inductor (torch 2.11) takes every map (N, H, W, C) before it for
one of H channels, and lays it out so that each row of a layer norm is gathered from all over it.
MixFormer-B4 took 1.04 of the eager time so, and takes 0.95 with convolutions that inductor does not
know.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .depthwise import in_single_precision
from .dispatch import autocast, compiled_kernel, fused_module, is_fast_in_graph
from .narrow import NarrowConv2d, is_wrong


@fused_module
class MapConv2d(NarrowConv2d):
    """``nn.Conv2d`` that is an operation of the graphs that torch.compile makes for a CPU."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        known = self.padding_mode == 'zeros' and not isinstance(self.padding, str)
        if not (known and is_fast_in_graph(x, weight, bias)):
            return super()._conv_forward(x, weight, bias)
        x, weight, bias = autocast(x, weight, bias)
        sizes: Any = self.stride, self.padding, self.dilation, self.groups
        return _in_graph(x.permute(0, 2, 3, 1), weight, bias, *sizes).permute(0, 3, 1, 2)


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """(N, H, W, C) -> (N, H', W', C')."""
    x = x.permute(0, 3, 1, 2)
    sizes = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    convolve: Any = partial(F.conv2d, **sizes)
    if is_wrong(x, weight.shape[3], stride[1], padding[1], dilation[1]):
        convolve = partial(in_single_precision, convolve)
    return convolve(x, weight, bias).permute(0, 2, 3, 1).contiguous()


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], groups: int, needed: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of :func:`_convolve` that are needed: of x, weight and bias."""
    dtype = x.dtype
    grad, x = grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
    if is_wrong(x, weight.shape[3], stride[1], padding[1], dilation[1]):
        grad, x, weight = grad.float(), x.float(), weight.float()
    of_x, *found = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, needed
    )
    found = [None if of_x is None else of_x.permute(0, 2, 3, 1), *found]
    return [part.to(dtype).contiguous() for part in found if part is not None]


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    sides = (
        (side + 2 * around - gap * (size - 1) - 1) // step + 1
        for side, size, step, around, gap in zip(
            x.shape[1:3], weight.shape[2:], stride, padding, dilation, strict=True
        )
    )
    return x.new_empty(x.shape[0], *sides, weight.shape[0])


_in_graph = compiled_kernel('convolution', _convolve, _fake)
_gradients_in_graph = compiled_kernel(
    'convolution_gradients',
    _gradients,
    lambda grad, x, weight, stride, padding, dilation, groups, needed: [
        x.new_empty(shape)
        for shape, wanted in zip((x.shape, weight.shape, weight.shape[:1]), needed, strict=True)
        if wanted
    ],
)


def _store(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.sizes = inputs
    ctx.save_for_backward(x, weight)


def _backward_in_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:3])
    found = iter(_gradients_in_graph(grad.contiguous(), *ctx.saved_tensors, *ctx.sizes, needed))
    return (*(next(found) if wanted else None for wanted in needed), None, None, None, None)


_in_graph.register_autograd(_backward_in_graph, setup_context=_store)
