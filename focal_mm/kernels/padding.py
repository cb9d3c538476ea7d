"""Maps that are padded by a token of their own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    return _PadByToken.apply(x, token, multiple)


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


class _PadByToken(torch.autograd.Function):
    """:func:`pad_by_token`; its gradients can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, multiple: int) -> Tensor:
        ctx.size = x.shape[1:3]
        out, inside = padded_map(token, x.shape[:3], multiple)
        inside.copy_(x)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        height, width = ctx.size
        right, below = (
            part.sum((0, 1, 2), keepdim=True)
            for part in (grad[:, :height, width:], grad[:, height:])
        )
        return grad[:, :height, :width], right + below, None
