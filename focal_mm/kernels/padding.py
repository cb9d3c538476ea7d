"""Linear layers of maps that are padded to whole windows."""

from typing import Any

import torch
from torch import Tensor, nn

from .dispatch import can_fuse, wants_grad
from .inference import by_rows
from .linear import project
from .window_plans import pad_to_multiple, padding_to_multiple


def project_padded(x: Tensor, multiple: int, *layers: nn.Module) -> Tensor:
    """Zero-pad a map at the right and at the bottom to multiples of a side, and apply layers to its
    last axis.

    All tokens of the padding have the same result, which is computed once: of a map of 16 x 16 that
    is padded for windows of 7 they are two in five.

    Args:
        x (Tensor): Shape (N, H, W, C).
        multiple (int): The side.
        layers (nn.Module): Linear layers and norms, or modules in their place.

    Returns:
        Tensor: Shape (N, H', W', C').
    """

    def apply(x: Tensor) -> Tensor:
        for layer in layers:
            x = project(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x

    known = (nn.LayerNorm if isinstance(layer, nn.LayerNorm) else nn.Linear for layer in layers)
    if not can_fuse(*zip(layers, known, strict=True)):
        return apply(pad_to_multiple(x, multiple))
    below, right = (padding_to_multiple(side, multiple) for side in x.shape[1:3])
    edge = apply(x.new_zeros(x.shape[-1]))
    if wants_grad(x, edge):
        x = apply(x)
        return _Pad.apply(x, edge, below, right) if below or right else x
    out, inside = _padded(x, edge, below, right)
    by_rows(apply, x, elements=len(x) * x.shape[2] * max(x.shape[3], len(edge)), out=inside)
    return out


def _padded(x: Tensor, edge: Tensor, below: int, right: int) -> tuple[Tensor, Tensor]:
    """Return a map whose padding has the values of ``edge``, and the part that is not padding, both
    without values there.
    """
    count, height, width = x.shape[:3]
    out = edge.new_empty(count, height + below, width + right, len(edge))
    out[:, height:] = edge
    out[:, :height, width:] = edge
    return out, out[:, :height, :width]


class _Pad(torch.autograd.Function):
    """Padding of a map (N, H, W, C) by tokens (C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edge: Tensor, below: int, right: int) -> Tensor:
        ctx.size = x.shape[1:3]
        out, inside = _padded(x, edge, below, right)
        inside.copy_(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        height, width = ctx.size
        grad_edge = grad[:, height:].sum((0, 1, 2)) + grad[:, :height, width:].sum((0, 1, 2))
        return grad[:, :height, :width], grad_edge, None, None
