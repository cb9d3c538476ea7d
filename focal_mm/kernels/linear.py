"""Linear layers and MLPs, on a CPU by the faster of two matrix products.

``torch.nn.functional.linear`` and a 1x1 convolution compute the same product in different
libraries. Each kernel has its plain twin beside it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import (
    autocast,
    can_fuse,
    compiled_kernel,
    differentiates_again,
    fused_module,
    is_fast,
    is_fast_in_graph,
    is_graph,
    reference_gradients,
    wants_grad,
)
from .memory import count_parts, new_map
from .narrow import NarrowConv2d


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to the last axis: (..., C) -> (..., C').

    Args:
        x (Tensor): Shape (..., C).
        weight (Tensor): Shape (C', C).
        bias (Tensor, optional): Shape (C').
    """
    compute: Any
    if is_fast_in_graph(x, weight, bias):
        compute = _linear_in_graph
    elif not is_fast(x, weight, bias) or not _is_convolved(x):
        return linear_reference(x, weight, bias)
    else:
        compute = _Linear.apply if wants_grad(x, weight, bias) else _product
    rows = x.reshape(-1, x.shape[-1])
    return compute(*autocast(rows, weight, bias)).reshape(*x.shape[:-1], len(weight))


linear_reference = F.linear


@fused_module
class PatchConv2d(NarrowConv2d):
    """``nn.Conv2d`` whose stride equals its kernel size: the same linear layer for every patch.

    In a graph it becomes a matrix product. PyTorch chooses an algorithm for a convolution by the
    size of the image, and would make a separate graph for each choice.

    Args:
        in_channels (int): Channels C.
        out_channels (int): Channels C'.
        patch_size (int): Side p of a patch.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / p, W / p)."""
        if not is_graph():
            return super().forward(x)
        x, side = x.permute(0, 2, 3, 1), self.kernel_size[0]
        if side > 1:
            x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(x, weight, self.bias).permute(0, 3, 1, 2)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer to the last axis, by :func:`linear` unless the layer has hooks or has
    been replaced.

    Args:
        layer (nn.Module): ``nn.Linear``, or a module in its place.
        x (Tensor): Shape (..., C).

    Returns:
        Tensor: Shape (..., C').
    """
    if not can_fuse((layer, nn.Linear)):
        return layer(x)
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight, layer.bias)


def project_parts(layer: nn.Module, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Apply a linear layer, as :func:`project`, and split the result along its last axis.

    From the kernel, each part has memory of its own; a convolution would have to copy a view into
    the whole.

    Args:
        layer (nn.Module): ``nn.Linear``, or a module in its place.
        x (Tensor): Shape (..., C).
        sizes (Sequence[int]): Channels of each part.

    Returns:
        tuple[Tensor, ...]: The parts.
    """
    if not can_fuse((layer, nn.Linear)):
        return layer(x).split(sizes, -1)
    assert isinstance(layer, nn.Linear)
    biases = [None] * len(sizes) if layer.bias is None else layer.bias.split(sizes)
    parts = zip(layer.weight.split(sizes), biases, strict=True)
    return tuple(linear(x, weight, bias) for weight, bias in parts)


def multiply_linear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear layer to the product of two maps, which is not stored for the backward pass.

    Args:
        x (Tensor): Shape (..., C).
        y (Tensor): Shape (..., C).
        weight (Tensor): Shape (C', C).
        bias (Tensor or None): Shape (C').

    Returns:
        Tensor: Shape (..., C').
    """
    if not (is_fast(x, y, weight, bias) and wants_grad(x, y, weight, bias)):
        return linear(x * y, weight, bias)
    tensors = autocast(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), weight, bias)
    return _MultiplyLinear.apply(*tensors).reshape(*x.shape[:-1], len(weight))


def multiply_linear_reference(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute :func:`multiply_linear` in plain PyTorch."""
    return F.linear(x * y, weight, bias)


def project_map(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution, as :func:`project`, to a map whose channels come first in its shape
    and last in memory: (N, C, H, W) -> (N, H, W, C').

    Args:
        layer (nn.Module): :class:`PatchConv2d` of 1x1 kernels, or a module in its place.
        x (Tensor): Shape (N, C, H, W).
    """
    if not can_fuse((layer, PatchConv2d)):
        return layer(x).permute(0, 2, 3, 1)
    assert isinstance(layer, PatchConv2d)
    return linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Apply a layer norm, a linear layer, GELU and a linear layer to the last axis: (..., C) ->
    (..., C').

    The normed and the activated map are never stored as a whole. On a CPU, rows are processed in
    slices that stay in its cache; for the backward pass only the hidden map before GELU is stored.

    Args:
        x (Tensor): Shape (..., C).
        weight1 (Tensor): Shape (hidden, C).
        bias1 (Tensor or None): Shape (hidden).
        weight2 (Tensor): Shape (C', hidden).
        bias2 (Tensor or None): Shape (C').
        scale (Tensor, optional): Of the norm, shape (C). Default: no norm.
        shift (Tensor, optional): Of the norm, shape (C). Default: none.
        eps (float): Of the norm. Default: 1e-5.
    """
    weights, norm = (weight1, bias1, weight2, bias2), (scale, shift)
    in_graph = is_fast_in_graph(x, *weights, *norm)
    if not (in_graph or is_fast(x, *weights, *norm)):
        return mlp_reference(x, *weights, *norm, eps)
    arguments = x.reshape(-1, x.shape[-1]), *autocast(*weights), *norm, eps
    trains = wants_grad(x, *weights, *norm)
    if in_graph:
        out, _ = _mlp_in_graph(*arguments, trains)
    else:
        compute: Any = _Mlp.apply if trains else _mlp_by_slices
        out = compute(*arguments)
    return out.reshape(*x.shape[:-1], len(weight2))


def mlp_reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute :func:`mlp` in plain PyTorch."""
    if scale is not None:
        x = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def _is_convolved(x: Tensor) -> bool:
    """Return whether a 1x1 convolution may be the faster product, forward or backward."""
    return x.is_cpu and x.dtype != torch.double


def _as_map(rows: Tensor) -> Tensor:
    """View rows (T, C) as a map (1, C, 1, T)."""
    return rows[None, None].permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, C) -> (T, C').

    A convolution adds the bias in the same pass: 190 GFLOP/s instead of 160 on two cores. With few
    rows it is slower, since it copies the weight first: 110 instead of 160 for 196 rows of 768
    channels.
    """
    if not _is_convolved(x) or len(x) < 512:
        return F.linear(x, weight, bias)
    out = F.conv2d(_as_map(x), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(x), len(weight)).contiguous()


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of :func:`_product` with respect to x: (T, C') -> (T, C). By convolution
    it has 180 GFLOP/s instead of 160, with few rows 165 instead of 145.
    """
    if not _is_convolved(x):
        return grad @ weight
    grad_x, *_ = torch.ops.aten.convolution_backward(
        _as_map(grad), _as_map(x), weight[:, :, None, None], None, (1, 1), (0, 0), (1, 1), False,
        (0, 0), 1, (True, False, False))  # fmt: skip
    return grad_x.permute(0, 2, 3, 1).reshape(x.shape).contiguous()


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of :func:`_product` with respect to its weight: (C', C).

    A product is faster if the tensor with more channels is the first factor. Convolution is the
    faster one with few channels: 177 GFLOP/s instead of 138 for 96 to 96.
    """
    wide, narrow = x.shape[1], grad.shape[1]
    if wide == narrow <= 384 and _is_convolved(x):
        weight = x.new_empty(narrow, wide, 1, 1)
        return torch.ops.aten.convolution_backward(
            _as_map(grad), _as_map(x), weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
            (False, True, False))[1].flatten(1).contiguous()  # fmt: skip
    return (x.t() @ grad).t().contiguous() if narrow < wide else grad.t() @ x


class _Linear(torch.autograd.Function):
    """:func:`_product` with the faster gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if differentiates_again(grad):
            return reference_gradients(
                linear_reference, (x, weight, bias), grad, ctx.needs_input_grad
            )
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _input_gradient(grad, x, weight) if of_x else None,
            _weight_gradient(x, grad) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


_linear_in_graph = compiled_kernel(
    'linear', _product, lambda x, weight, bias: x.new_empty(x.shape[0], len(weight))
)
_input_gradient_in_graph = compiled_kernel(
    'linear_input_gradient', _input_gradient, lambda grad, x, weight: x.new_empty(x.shape)
)
_weight_gradient_in_graph = compiled_kernel(
    'linear_weight_gradient',
    _weight_gradient,
    lambda x, grad: x.new_empty(grad.shape[1], x.shape[1]),
)


def _backward_in_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        _input_gradient_in_graph(grad, x, weight) if of_x else None,
        _weight_gradient_in_graph(x, grad) if of_weight else None,
        grad.sum(0) if of_bias else None,
    )


_linear_in_graph.register_autograd(
    _backward_in_graph,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)


class _MultiplyLinear(torch.autograd.Function):
    """:func:`multiply_linear` of rows, whose product is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, y, weight, bias)
        return _product(x * y, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, bias = ctx.saved_tensors
        if differentiates_again(grad):
            inputs = x, y, weight, bias
            return reference_gradients(
                multiply_linear_reference, inputs, grad, ctx.needs_input_grad
            )
        of_x, of_y, of_weight, of_bias = ctx.needs_input_grad
        of_product = _input_gradient(grad, x, weight) if of_x or of_y else grad
        return (
            of_product * y if of_x else None,
            of_product.mul_(x) if of_y else None,
            _weight_gradient(x * y, grad) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _slices(x: Tensor, width: int) -> Iterator[slice]:
    """Return the slices of rows that go through an MLP one after another."""
    parts = count_parts(len(x), width) if x.is_cpu else 1
    step = -(-len(x) // parts)
    return (slice(i, i + step) for i in range(0, len(x), step))


def _normed(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return rows in a dtype, normed if there is a scale, then also their means and inverse
    deviations.
    """
    if scale is None:
        return (x.to(dtype),)
    rows, *moments = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
    return rows.to(dtype), *moments


def _mlp_by_slices(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, eps: float, hidden: list[Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """(T, C) -> (T, C'); ``hidden`` collects the results of the first layer, slice by slice."""
    shape = len(x), len(weight2)
    out = new_map(weight2, *shape) if hidden is None else weight2.new_empty(shape)
    for rows in _slices(x, len(weight1)):
        part, *_ = _normed(x[rows], scale, shift, eps, weight1.dtype)
        part = _product(part, weight1, bias1)
        if hidden is None:
            torch.ops.aten.gelu_(part)
        else:
            hidden.append(part)
            part = F.gelu(part)
        out[rows] = _product(part, weight2, bias2)
    return out


class _Mlp(torch.autograd.Function):
    """:func:`_mlp_by_slices` with gradients by slices."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor,
        bias2: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
    ) -> Tensor:  # fmt: skip
        hidden: list[Tensor] = []
        tensors = x, weight1, bias1, weight2, bias2, scale, shift
        out = _mlp_by_slices(*tensors, eps, hidden)
        ctx.save_for_backward(*tensors, *hidden)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        tensors, hidden = saved[:7], saved[7:]
        if differentiates_again(grad):
            reference = partial(mlp_reference, eps=ctx.eps)
            return (*reference_gradients(reference, tensors, grad, ctx.needs_input_grad[:7]), None)
        return (*_mlp_gradients(grad, hidden, ctx.eps, *tensors), None)


def _mlp_gradients(
    grad: Tensor, hidden: Sequence[Tensor], eps: float, x: Tensor, weight1: Tensor,
    bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of :func:`_mlp_by_slices`, of which ``hidden`` has been collected."""
    sums = torch.promote_types(weight1.dtype, torch.float)
    grad_weight1, grad_weight2 = (torch.zeros_like(w, dtype=sums) for w in (weight1, weight2))
    vectors: list[list[Tensor]] = []  # gradients of the first bias and the norm, by slices

    def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
        if total.dtype == a.dtype:
            total.addmm_(a, b)
        else:
            total += a @ b

    grad_x = torch.empty_like(x)
    for rows, part in zip(_slices(x, len(weight1)), hidden, strict=True):
        normed, *moments = _normed(x[rows], scale, shift, eps, weight1.dtype)
        add_product(grad_weight2.t(), F.gelu(part).t(), grad[rows])
        part = torch.ops.aten.gelu_backward(_input_gradient(grad[rows], part, weight2), part)
        add_product(grad_weight1, part.t(), normed)
        sliced = [part.sum(0, dtype=sums)]
        of_x = _input_gradient(part, normed, weight1)
        if scale is not None:
            norm = (*moments, scale, shift, [True, True, shift is not None])
            of_x, *of_norm = torch.ops.aten.native_layer_norm_backward(
                of_x.to(x.dtype), x[rows], x.shape[-1:], *norm
            )
            sliced += of_norm[: 1 if shift is None else 2]
        grad_x[rows] = of_x
        vectors.append(sliced)
    grad_bias1, *grad_norm = (torch.stack(parts).sum(0) for parts in zip(*vectors))
    grad_scale, grad_shift = (*grad_norm, None, None)[:2]
    dtype = weight1.dtype
    return (
        grad_x,
        grad_weight1.to(dtype),
        None if bias1 is None else grad_bias1.to(dtype),
        grad_weight2.to(dtype),
        None if bias2 is None else grad.sum(0),
        grad_scale,
        grad_shift,
    )


def _stored_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, eps: float, store: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the result of :func:`_mlp_by_slices` and, if it is to be stored, the hidden map."""
    if not store:
        return _mlp_by_slices(x, weight1, bias1, weight2, bias2, scale, shift, eps), x.new_empty(0)
    hidden: list[Tensor] = []
    out = _mlp_by_slices(x, weight1, bias1, weight2, bias2, scale, shift, eps, hidden)
    return out, torch.cat(hidden) if len(hidden) > 1 else hidden[0]


def _stored_mlp_gradients(
    grad: Tensor, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor,
    bias2: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float, hidden: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the tensors that there are."""
    parts = [hidden[rows] for rows in _slices(x, len(weight1))]
    tensors = x, weight1, bias1, weight2, bias2, scale, shift
    found = _mlp_gradients(grad, parts, eps, *tensors)
    return [part.contiguous() for part in found if part is not None]


_mlp_in_graph = compiled_kernel(
    'mlp',
    _stored_mlp,
    lambda x, weight1, bias1, weight2, bias2, scale, shift, eps, store: (
        weight2.new_empty(x.shape[0], len(weight2)),
        weight2.new_empty(x.shape[0], len(weight1)) if store else x.new_empty(0),
    ),
)
_mlp_gradients_in_graph = compiled_kernel(
    'mlp_gradients',
    _stored_mlp_gradients,
    lambda grad, *tensors: [part.new_empty(part.shape) for part in tensors[:7] if part is not None],
)


def _store_mlp(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _mlp_backward_in_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, hidden = ctx.saved_tensors
    found = iter(_mlp_gradients_in_graph(grad.contiguous(), *tensors, ctx.eps, hidden))
    return (*(None if part is None else next(found) for part in tensors), None, None)


_mlp_in_graph.register_autograd(_mlp_backward_in_graph, setup_context=_store_mlp)
