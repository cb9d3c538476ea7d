"""Maps that are padded by a token of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import compiled_kernel, is_compiled
from .memory import new_map
from .window_plans import padding_to_multiple


def pad_by_token(x: Tensor, token: Tensor, multiple: int) -> Tensor:
    """Pad a map at the right and at the bottom to multiples of a side, by copies of a token.

    Args:
        x (Tensor): Shape (N, H, W, C).
        token (Tensor): Shape (1, 1, 1, C).
        multiple (int): The side.

    Returns:
        Tensor: Shape (N, H', W', C).
    """
    pad: Any = _padded_in_graph if is_compiled() else _PadByToken.apply
    return pad(x, token, multiple)


def padded_map(token: Tensor, size: Sequence[int], multiple: int) -> tuple[Tensor, Tensor]:
    """Return a map as :func:`pad_by_token` does, and the part of it that has no values yet.

    Args:
        token (Tensor): Shape (1, 1, 1, C).
        size (Sequence[int]): N, and the height and width before padding.
        multiple (int): The side.

    Returns:
        tuple[Tensor, Tensor]: Shape (N, H', W', C), and (N, height, width, C).
    """
    count, height, width = size
    below, right = (padding_to_multiple(side, multiple) for side in (height, width))
    out = new_map(token, count, height + below, width + right, token.shape[-1])
    out[:, height:] = token
    out[:, :height, width:] = token
    return out, out[:, :height, :width]


def _padded(x: Tensor, token: Tensor, multiple: int) -> Tensor:
    out, inside = padded_map(token, x.shape[:3], multiple)
    inside.copy_(x)
    return out


def _fake(x: Tensor, token: Tensor, multiple: int) -> Tensor:
    count, height, width, channels = x.shape
    below, right = (padding_to_multiple(side, multiple) for side in (height, width))
    return x.new_empty(count, height + below, width + right, channels)


def _store(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor | None = None) -> None:
    ctx.size = inputs[0].shape[1:3]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    height, width = ctx.size
    right, below = (
        part.sum((0, 1, 2), keepdim=True) for part in (grad[:, :height, width:], grad[:, height:])
    )
    return grad[:, :height, :width], right + below, None


class _PadByToken(torch.autograd.Function):
    """:func:`pad_by_token`; its gradients can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _store(ctx, inputs)
        return _padded(*inputs)

    backward = staticmethod(_gradients)


_padded_in_graph = compiled_kernel('pad_by_token', _padded, _fake)
_padded_in_graph.register_autograd(_gradients, setup_context=_store)
