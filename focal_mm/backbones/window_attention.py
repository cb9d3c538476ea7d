"""Attention of the windows of a map to the tokens that a plan gathers for each.

A plan is made once a map's size and kept. Windows go through some at a time: what is gathered for
them and their scores stay in the processor's cache, and the backward pass makes both again, so
that memory grows with the map, not with the windows times their keys.
"""
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from math import log, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layers import is_graph

# Scores that a core has in work at a time. Measured: from 2/3 to 4 times as many Focal Transformer
# takes the same time, and MixFormer's attention a quarter more with 1/4 of them. What is no CPU
# counts as many cores, for few large steps.
SCORES = 1 << 19

# What is added to a score that is not to count. Focal Transformer's official code adds -100;
# exp(-100) vanishes too, but as a subnormal number, with which processors are slow.
MASKED = float('-inf')

# Scores are taken times log2(e), and powers of two of them: on the CPU exp2 takes a third of exp.
LOG2_E = 1 / log(2)


class Plan(NamedTuple):
    """Which tokens windows attend to.

    Args:
        own (Tensor): The tokens of each window, which attend; shape (windows, tokens).
        keys (Tensor): The tokens that they attend to, shape (windows, keys).
        places (Tensor or None): By what the bias of each key is found, shape (windows, keys). None
            if that of the n-th key is the n-th one in all windows.
        mask (Tensor or None): What is added to the scores, shape (windows, 1, 1 or tokens, keys).
    """
    own: Tensor
    keys: Tensor
    places: Tensor | None = None
    mask: Tensor | None = None


def wrap(index: Tensor, side: int) -> Tensor:
    """An index up to a side beyond a map's ends, counted from the other end there. The remainder
    is the same, but ONNX has none by a symbol."""
    index = torch.where(index < 0, index + side, index)
    return torch.where(index < side, index, index - side)


def window_grid(rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each window of a map, row by row: shapes (windows, 1).

    In a graph the last window comes twice: where there could be one alone, the graph would be for
    maps of one window, or for all others.
    """
    count = rows * cols
    window = torch.arange(count + int(is_graph()), device=device)[:, None]
    # Not by clamp: inductor would carry all that follows as one symbol, and take minutes for it.
    window = torch.where(window < count, window, count - 1)
    return window // cols, window - window // cols * cols


def window_tokens(rows: int, cols: int, size: int, device: torch.device) -> Tensor:
    """Which tokens of a map, counted row by row, are in each window of :func:`window_grid`: shape
    (windows, size^2)."""
    row, col = window_grid(rows, cols, device)
    place = torch.arange(size**2, device=device)
    return (row * size + place // size) * cols * size + col * size + place % size


def roll(x: Tensor, shifts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Rolls a map (N, H, W, C) down and to the right by up to a side, and crops it to the sizes.

    For graphs: where sizes are symbols, :func:`torch.roll` has no ONNX, and slices ask whether
    there is something to crop.
    """
    for dim, (shift, size) in enumerate(zip(shifts, sizes), 1):
        index = torch.arange(size, device=x.device) - shift
        x = x.index_select(dim, wrap(index, x.shape[dim]))
    return x


def rows_of_heads(own: Tensor, keys: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Where the queries, and the keys and values, of each window and head are among the rows of a
    (tokens, 3 * heads, channels) map: shapes (windows, heads, tokens) and (2, windows, heads,
    keys)."""
    head = torch.arange(3 * heads, device=keys.device).view(3, 1, heads, 1)
    return own[:, None] * 3 * heads + head[0], keys[:, None] * 3 * heads + head[1:]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def kept_parts(heads: int, plan: Callable[..., Plan], height: int, width: int, window_size: int,
               *args) -> tuple[list[Plan], Tensor | None]:
    """A plan in parts: whole rows of windows, or parts of a row. All blocks of a stage share it,
    and all images of one size; training may meet what was made in inference mode.

    Args:
        heads (int): Attention heads, each with scores of its own.
        plan (Callable): Makes the plan, of the other arguments.

    Returns:
        tuple: The parts, without the keys that are masked for all of their windows. Their places
        are columns of the bias, shape (1 or windows, keys), or None for all columns. And the
        places of the plan that the columns stand for; None if it has none.
    """
    own, keys, places, mask = plan(height, width, window_size, *args)
    if keys.is_meta:  # no values to look at
        return [Plan(own, keys, None, mask)], None if places is None else places[0]
    distinct, index = None, torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    if places is not None:
        distinct, index = places.unique(return_inverse=True)
    columns = torch.arange(int(index.max()) + 1, device=keys.device)
    cores = torch.get_num_threads() if keys.is_cpu else 128
    most = max(1, SCORES * cores // (heads * own.shape[1] * keys.shape[1]))
    across = -(-width // window_size)

    def part(some: Tensor) -> Plan:
        inside = slice(None)
        if mask is not None:
            inside = (mask[some] == 0).flatten(0, 2).any(0)
        picked = index[some][:, inside]
        if (picked == picked[:1]).all():
            picked = picked[:1]
        added = None if mask is None else mask[some][..., inside]
        return Plan(own[some], keys[some][:, inside],
                    None if picked.shape[0] == 1 and picked[0].equal(columns) else picked,
                    added if added is not None and added.any() else None)

    rows = torch.arange(len(own), device=own.device).split(max(1, most // across) * across)
    parts = [part(some) for row in rows for some in row.tensor_split(-(-len(row) // most))]
    # The largest first: what a workspace has for one is enough for the next.
    return sorted(parts, key=lambda part: -part.keys.numel()), distinct


def home_places(height: int, width: int, high: int, wide: int, window_size: int,
                shift: tuple[int, int], device: torch.device) -> Tensor:
    """Where the tokens of a map are, counted window by window: shape (height, width).

    Args:
        height (int): That of the map.
        width (int): Likewise.
        high (int): That of the map padded to whole windows.
        wide (int): Likewise.
        window_size (int): Side of a window.
        shift (tuple[int, int]): By how many tokens windows are shifted down and to the right.
        device (torch.device): That of the result.
    """
    y, x = (wrap(torch.arange(n, device=device) - by, side)
            for n, by, side in ((height, shift[0], high), (width, shift[1], wide)))
    window = (y // window_size)[:, None] * (wide // window_size) + x // window_size
    return window * window_size**2 + (y % window_size)[:, None] * window_size + x % window_size


def attend(qkv: Tensor, plan: Plan, bias: Tensor, home: Tensor, heads: int, dropout: float
           ) -> Tensor:
    """All windows at once, for graphs and for dropout.

    Args:
        qkv (Tensor): Queries, keys and values of all tokens, shape (N, tokens, 3 * C).
        plan (Plan): Of the map.
        bias (Tensor): What is added to the scores; broadcasts to (windows, heads, tokens of a
            window, keys).
        home (Tensor): See :func:`home_places`, shape (H, W).
        heads (int): Attention heads.
        dropout (float): Dropout rate of the attention weights.

    Returns:
        Tensor: Shape (N, H, W, C).
    """
    count, tokens, dim = qkv.shape
    # The images of a batch are one row of windows, and of tokens.
    image = torch.arange(count, device=qkv.device)[:, None, None]
    own, keys = ((image * tokens + part).flatten(0, 1) for part in plan[:2])
    bias = bias if plan.mask is None else bias + plan.mask
    bias = bias.expand(plan.own.shape[0], -1, -1, -1).repeat(count, 1, 1, 1)
    rows = qkv.view(-1, dim // 3 // heads)
    query, pair = (rows.index_select(0, where.flatten()).unflatten(0, where.shape)
                   for where in rows_of_heads(own, keys, heads))
    out = F.scaled_dot_product_attention(query, *pair.unbind(0), bias.to(query), dropout)
    # The order in memory that attention leaves is not the same everywhere: a copy, not a view.
    out = out.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(-1, dim // 3)
    return F.embedding(image * plan.own.numel() + home, out)


class Workspace:
    """Memory that each part takes over from the one before. Asked for anew it would cost more than
    what is done in it.

    Args:
        like (Tensor): Its type and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.space: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape that holds anything, and whatever had the name is lost."""
        if name not in self.space or self.space[name].numel() < prod(shape):
            self.space[name] = self.like.new_empty(prod(shape))
        return self.space[name][:prod(shape)].view(shape)

    def rows(self, name: str, x: Tensor, where: Tensor) -> Tensor:
        """The rows of x that an index names."""
        return torch.index_select(x, 0, where, out=self(name, len(where), x.shape[1]))


def gather(space: Workspace, rows: Tensor, part: Plan, heads: int) -> tuple[Tensor, ...]:
    """What some windows attend with.

    Args:
        space (Workspace): Where it is put.
        rows (Tensor): Those of all tokens and heads, see :func:`rows_of_heads`.
        part (Plan): The windows.
        heads (int): Attention heads.

    Returns:
        tuple: Where in ``rows`` the queries are; where they are among (tokens, heads) rows, as what
        they attend to is put; the queries, shape (windows * heads, tokens, channels), and the keys
        and values, shape (2, windows * heads, keys, channels).
    """
    own, keys = rows_of_heads(part.own, part.keys, heads)
    home = (own - 2 * heads * part.own[:, None]).flatten()
    tokens, dim, own = own.shape[-1], rows.shape[1], own.flatten()
    query = space.rows('query', rows, own).view(-1, tokens, dim)
    pair = space.rows('pair', rows, keys.flatten()).view(2, len(query), -1, dim)
    return own, home, query, pair


def scores(space: Workspace, query: Tensor, key: Tensor, bias: Tensor, part: Plan,
           less: Tensor | None = None) -> Tensor:
    """Scores of some windows times log2(e), with what is added to them.

    Args:
        space (Workspace): Where they are put.
        query (Tensor): Shape (windows * heads, tokens, channels of a head).
        key (Tensor): Shape (windows * heads, keys, channels of a head).
        bias (Tensor): That of all columns times log2(e), shape (heads, tokens, columns).
        part (Plan): The windows.
        less (Tensor, optional): What is taken away, shape (windows, heads, tokens, 1).

    Returns:
        Tensor: In at least single precision, shape (windows * heads, tokens, keys).
    """
    if part.places is None:
        bias = bias[None]
    else:
        bias = bias.index_select(-1, part.places.flatten())
        bias = bias.unflatten(-1, part.places.shape).movedim(-2, 0)
    shape, scale = (len(part.own), *bias.shape[1:]), LOG2_E * query.shape[-1]**-0.5
    score = space('score', *shape)
    if query.dtype != score.dtype:
        # Added in one step with the bias it would be converted more slowly than by a copy.
        score.copy_((query @ key.mT).view(shape))
        torch.add(bias, score, alpha=scale, out=score)
        if less is not None:
            score -= less
    else:
        score = score.copy_(bias) if less is None else torch.sub(bias, less, out=score)
        flat = score.flatten(0, 1)
        torch.baddbmm(flat, query, key.mT, alpha=scale, out=flat)
    if part.mask is not None:
        score += part.mask
    return score.flatten(0, 1)


class WindowAttention(torch.autograd.Function):
    """Attention, some windows at a time. For the backward pass nothing is stored but the output and
    the logarithm of what softmax divides by.

    The arguments of ``apply`` are the queries, keys and values of all tokens, shape (N, tokens,
    3 * C); how many of the tokens, the first ones, have queries; the bias of all columns, shape
    (heads, tokens of a window, columns); and the parts, see :func:`kept_parts`. The result has
    shape (N, tokens with queries, C).
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, queries: int, bias: Tensor, parts: list[Plan]) -> Tensor:
        heads = len(bias)
        out = qkv.new_empty(len(qkv), queries, qkv.shape[-1] // 3)
        dim = out.shape[-1] // heads
        # In half precision scores are kept in single, and gradients are added up in it.
        exact = qkv.new_empty(0, dtype=torch.promote_types(qkv.dtype, torch.float))
        log_sum = exact.new_empty(len(qkv), queries * heads)
        bias, space, wide = bias.to(exact) * LOG2_E, Workspace(qkv), Workspace(exact)
        for image, part in product(range(len(qkv)), parts):
            _, home, query, (key, value) = gather(space, qkv[image].view(-1, dim), part, heads)
            score = scores(wide, query, key, bias, part)
            top = score.amax(-1, keepdim=True)
            total = score.sub_(top).exp2_().sum(-1, keepdim=True)
            attended = torch.bmm(score.to(value), value, out=query).div_(total)
            out[image].view(-1, dim).index_copy_(0, home, attended.view(-1, dim))
            log_sum[image].index_copy_(0, home, total.log2_().add_(top).flatten())
        ctx.save_for_backward(qkv, bias, out, log_sum)
        ctx.parts = parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, out, log_sum = ctx.saved_tensors
        heads, tokens = bias.shape[:2]
        dim = out.shape[-1] // heads
        scale = dim**-0.5
        grad_qkv = torch.zeros_like(qkv, dtype=bias.dtype)
        grad_bias = torch.zeros_like(bias)
        grad = grad.contiguous()
        slope = (grad * out).unflatten(-1, (heads, dim)).sum(-1).flatten(1)

        space, wide = Workspace(qkv), Workspace(bias)
        for image, part in product(range(len(qkv)), ctx.parts):
            own, home, query, pair = gather(space, qkv[image].view(-1, dim), part, heads)
            key, value = pair
            less = log_sum[image].index_select(0, home).view(-1, heads, tokens, 1)
            score = scores(wide, query, key, bias, part, less)
            weight = score.exp2_().to(value)
            grad_out = space.rows('out', grad[image].view(-1, dim), home).view(-1, tokens, dim)

            # The derivative of softmax, with what the values are multiplied by.
            score = torch.bmm(grad_out, value.mT, out=space('derivative', *weight.shape))
            score.sub_(slope[image].index_select(0, home).view(-1, tokens, 1)).mul_(weight)
            of_bias = score.unflatten(0, (-1, heads))
            if part.places is None:
                grad_bias += of_bias.sum(0)
            else:
                of_bias = of_bias.sum_to_size(len(part.places), *of_bias.shape[1:])
                grad_bias.index_add_(-1, part.places.flatten(),
                                     of_bias.movedim(0, -2).flatten(-2).to(grad_bias))

            torch.bmm(weight.mT, grad_out, out=value)
            grad_query = torch.bmm(score, key, out=grad_out).mul_(scale).view(-1, dim)
            torch.bmm(score.mT, query, out=key).mul_(scale)
            grad_rows = grad_qkv[image].view(-1, dim)
            grad_rows.index_copy_(0, own, grad_query.to(grad_rows))
            # One row a token, not one a head, takes half of the time with the copy.
            rows = wide('rows', 2, *part.keys.shape, heads, dim)
            rows.copy_(pair.unflatten(1, (-1, heads)).transpose(2, 3))
            keys = part.keys * 3 + torch.arange(1, 3, device=qkv.device)[:, None, None]
            grad_qkv[image].view(-1, heads * dim).index_add_(
                0, keys.flatten(), rows.view(-1, heads * dim))
        return grad_qkv.to(qkv), None, grad_bias, None
