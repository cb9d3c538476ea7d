"""Hierarchical contextualization and gated aggregation of FocalNet (Eq. 4 and 5) in one kernel.

On a GPU, in mode ``'triton'``, :mod:`.gated_context_triton` computes it.
"""

from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depthwise import (
    DepthwiseConv2d,
    convolve,
    depthwise_conv_reference,
    in_single_precision,
    input_gradient,
    is_half,
    may_hang,
    weight_gradient,
)
from .dispatch import (
    autocast,
    can_fuse,
    compiled_kernel,
    differentiates_again,
    is_fast,
    is_fast_in_graph,
    is_triton,
    reference_gradients,
    wants_grad,
)
from .memory import new_map

# Elements of a map that are computed at a time.
BAND = 1 << 21


def gated_context(context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
    """Gather the context of every token at all focal levels, with GELU as the activation.

    For the backward pass only the results of the convolutions are stored; GELU and gating are
    computed again. On a CPU, contexts that need no gradient are gathered in single precision, also
    under autocast.

    Args:
        context (Tensor): z^0, shape (N, C, H, W).
        gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).
        kernels (Tensor): The depth-wise kernels of each level, shape (C, 1, k, k).

    Returns:
        Tensor: The sum in Eq. 5, shape (N, C, H, W).
    """
    tensors = context, gates, *kernels
    if kernels and may_hang(context, kernels[0]):
        return in_single_precision(gated_context, *tensors)
    in_graph = is_fast_in_graph(*tensors)
    if not (in_graph or is_fast(*tensors)):
        return gated_context_reference(*tensors)
    trains = wants_grad(*tensors)
    # A depth-wise convolution in bfloat16 takes up to twice as long: 7.5 ms and 13.9 for 13 x 15,
    # 96 channels, 79 x 304.
    if kernels and is_half(context) and not trains:
        return in_single_precision(gated_context, *tensors)
    context, gates, *cast = autocast(*tensors)
    if in_graph:
        maps = context.permute(0, 2, 3, 1), gates.permute(0, 2, 3, 1)
        return _in_graph(*maps, cast, trains)[0].permute(0, 3, 1, 2)
    return (_GatedContext.apply if trains else _compute)(context, gates, *cast)


def gated_context_reference(context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
    """Compute :func:`gated_context` in plain PyTorch."""
    out = torch.zeros_like(context)
    for level, kernel in enumerate(kernels):
        context = F.gelu(depthwise_conv_reference(context, kernel))  # Eq. 4
        out = out + gates[:, level : level + 1] * context  # Eq. 5
    whole = F.gelu(context.mean((2, 3), keepdim=True))
    return out + gates[:, -1:] * whole


def kernels_of(levels: Iterable[nn.Module]) -> list[Tensor] | None:
    """Return the kernels of focal levels, each a sequence of a depth-wise convolution and a GELU.
    None: a level is anything else, or has hooks.
    """
    kernels: list[Tensor] = []
    for level in levels:
        if not isinstance(level, nn.Sequential) or len(level) != 2:
            return None
        conv: Any
        conv, act = level[0], level[1]
        if not can_fuse((level, nn.Sequential), (conv, DepthwiseConv2d), (act, nn.GELU)):
            return None
        kernels.append(conv.weight)
    return kernels


def _by_triton(name: str, *tensors: Tensor, **kwargs: Any) -> Any:
    """Call a function of :mod:`.gated_context_triton`.

    Raises:
        RuntimeError: If Triton fails (no Triton, no C compiler, an old GPU).
    """
    try:
        from . import gated_context_triton

        with torch.cuda.device_of(tensors[0]):
            return getattr(gated_context_triton, name)(*tensors, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = shorten(f'{type(error).__name__}: {error}', 300)
        raise RuntimeError(
            f'FocalNet: the Triton kernel failed ({reason}); without it: FOCAL_MM_KERNELS=fast'
        ) from error


def _compute(
    context: Tensor, gates: Tensor, *kernels: Tensor, stored: list[Tensor] | None = None
) -> Tensor:
    """Compute :func:`gated_context`; ``stored`` collects the arguments of GELU, level by level,
    and the global average.
    """
    if is_triton(context, gates, *kernels):
        return _by_triton('forward', context, gates, *kernels, stored=stored)
    if stored is None and kernels and context.is_cpu and context.shape[1:].numel() > BAND:
        return _compute_by_bands(context, gates, *kernels)
    out = None
    for level, kernel in enumerate(kernels):
        context = convolve(context, kernel)
        if stored is None:
            torch.ops.aten.gelu_(context)
        else:
            stored.append(context)
            context = F.gelu(context)
        gate = gates[:, level : level + 1]
        out = context * gate if out is None else out.addcmul_(context, gate)
    mean = context.mean((2, 3), keepdim=True)
    if stored is not None:
        stored.append(mean)
    whole, gate = F.gelu(mean), gates[:, -1:]
    return whole * gate if out is None else out.addcmul_(whole, gate)


def _compute_by_bands(context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
    """Compute :func:`gated_context` some rows of an image at a time, in memory that is reused."""
    count, dim, height, width = context.shape
    rows = -(-height // -(-dim * height * width // BAND))
    whole = new_map(context, count, height, width, dim).permute(0, 3, 1, 2)
    for out, z, gate in zip(whole.split(1), context.split(1), gates.split(1), strict=True):
        total = z.new_zeros(1, dim, 1, 1, dtype=torch.promote_types(z.dtype, torch.float))
        for level, kernel in enumerate(kernels):
            last = level == len(kernels) - 1
            finer = z
            if not last:
                z = new_map(z, 1, height, width, dim).permute(0, 3, 1, 2)
            for top in range(0, height, rows):
                band = slice(top, top + rows)
                part = torch.ops.aten.gelu_(convolve(finer, kernel, band))
                if level:
                    out[:, :, band].addcmul_(part, gate[:, level : level + 1, band])
                else:
                    torch.mul(part, gate[:, :1, band], out=out[:, :, band])
                if last:
                    total += part.sum((2, 3), keepdim=True, dtype=total.dtype)
                else:
                    z[:, :, band] = part
        out.addcmul_(F.gelu(total / (height * width)).to(z.dtype), gate[:, -1:])
    return whole


class _GatedContext(torch.autograd.Function):
    """:func:`_compute` with its gradients."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
        stored: list[Tensor] = []
        out = _compute(context, gates, *kernels, stored=stored)
        ctx.save_for_backward(context, gates, *kernels, *stored)
        ctx.triton = is_triton(context, gates, *kernels)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        context, gates, *rest = saved
        levels = len(rest) // 2
        kernels, stored, mean = rest[:levels], rest[levels:-1], rest[-1]
        if differentiates_again(grad):
            inputs = context, gates, *kernels
            return reference_gradients(gated_context_reference, inputs, grad, ctx.needs_input_grad)
        if ctx.triton:
            return _by_triton('backward', grad, *saved)
        return _gradients(grad, context, gates, kernels, stored, mean)


def _gradients(
    grad: Tensor,
    context: Tensor,
    gates: Tensor,
    kernels: Sequence[Tensor],
    stored: Sequence[Tensor],
    mean: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of :func:`_compute`, of which the last two have been stored."""
    levels = len(kernels)
    grad_gates, grad_kernels = torch.empty_like(gates), []
    grad_gates[:, -1:] = (grad * F.gelu(mean)).sum(1, keepdim=True)
    carry = torch.ops.aten.gelu_backward((grad * gates[:, -1:]).sum((2, 3), keepdim=True), mean)
    carry = carry / context.shape[2:].numel()
    z = F.gelu(stored[-1]) if levels else context
    for level in reversed(range(levels)):
        grad_gates[:, level] = (grad * z).sum(1)
        carry = torch.addcmul(carry, grad, gates[:, level : level + 1])
        carry = torch.ops.aten.gelu_backward(carry, stored[level])
        z = F.gelu(stored[level - 1]) if level else context
        grad_kernels.append(weight_gradient(z, carry, kernels[level].shape[-1]))
        carry = input_gradient(z, kernels[level], carry)
    return carry.expand_as(context), grad_gates, *reversed(grad_kernels)


def _stored(context: Tensor, gates: Tensor, kernels: list[Tensor], store: bool) -> list[Tensor]:
    """Compute :func:`gated_context` of maps (N, H, W, C) and (N, H, W, L + 1), and return it with
    what is to be stored.
    """
    stored: list[Tensor] | None = [] if store else None
    maps = context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2)
    out = _compute(*maps, *kernels, stored=stored)
    return [part.permute(0, 2, 3, 1).contiguous() for part in (out, *(stored or ()))]


def _stored_gradients(
    grad: Tensor, context: Tensor, gates: Tensor, kernels: list[Tensor], stored: list[Tensor]
) -> list[Tensor]:
    """Return the gradients of :func:`_stored`."""
    grad, context, gates = (part.permute(0, 3, 1, 2) for part in (grad, context, gates))
    *levels, mean = (part.permute(0, 3, 1, 2) for part in stored)
    of_context, of_gates, *of_kernels = _gradients(grad, context, gates, kernels, levels, mean)
    of_maps = (part.permute(0, 2, 3, 1) for part in (of_context, of_gates))
    return [part.contiguous() for part in (*of_maps, *of_kernels)]


def _fake(context: Tensor, gates: Tensor, kernels: list[Tensor], store: bool) -> list[Tensor]:
    count, *_, dim = context.shape
    stored = [*(context.shape for _ in kernels), (count, 1, 1, dim)] if store else []
    return [context.new_empty(shape) for shape in (context.shape, *stored)]


_in_graph = compiled_kernel('gated_context', _stored, _fake)
_gradients_in_graph = compiled_kernel(
    'gated_context_gradients',
    _stored_gradients,
    lambda grad, context, gates, kernels, stored: [
        part.new_empty(part.shape) for part in (context, gates, *kernels)
    ],
)


def _store(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    context, gates, kernels, _ = inputs
    ctx.save_for_backward(context, gates, *kernels, *output[1:])
    ctx.levels = len(kernels)


def _backward_in_graph(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    context, gates, *rest = ctx.saved_tensors
    kernels, stored = rest[: ctx.levels], rest[ctx.levels :]
    grad = grads[0].contiguous()
    of_context, of_gates, *found = _gradients_in_graph(grad, context, gates, kernels, stored)
    return of_context, of_gates, found, None


_in_graph.register_autograd(_backward_in_graph, setup_context=_store)
