"""Attention of the windows of a map to the tokens that a plan lists for each window.

The fast kernel makes one plan for each map size and caches it. It computes some windows at a time:
their gathered tokens and scores stay in the processor's cache, and the backward pass computes both
again, so that memory grows with the map, not with the windows times their keys.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import product
from math import log, log2, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import (
    cached,
    compiled_kernel,
    differentiates_again,
    is_fast,
    is_fast_in_graph,
    is_graph,
    reference_gradients,
    wants_grad,
)
from .window_plans import FocalWindows, Plan, Windows

# Scores that each core computes at a time. Measured: with 2/3 to 4 times as many, Focal Transformer
# takes the same time; with 1/4 as many, MixFormer's attention takes a quarter more. Other devices
# are treated as 128 cores, for few large steps.
SCORES_PER_CORE = 1 << 19

# Scores are multiplied by log2(e), so that exp2 replaces exp: on the CPU it takes a third as long.
LOG2_E = 1 / log(2)

# The bias of all windows, shape (num_heads, tokens of a window, keys), or a function of the bias
# indices of a plan: (windows, keys) -> (windows, num_heads, tokens, keys).
Bias = Tensor | Callable[[Tensor], Tensor]


def window_attention(
    qkv: Tensor, windows: Windows, bias: Bias, heads: int, dropout: float = 0.0
) -> Tensor:
    r"""Attend within windows, :math:`\text{softmax}(q k^T / \sqrt d + B) v`.

    Args:
        qkv (Tensor): Queries, keys and values of all tokens, the padded map before the pooled maps,
            shape (N, tokens, 3 * C).
        windows (Windows): Which tokens attend to which.
        bias (Tensor or Callable): B, see :data:`Bias`.
        heads (int): Attention heads.
        dropout (float): Dropout rate of the attention weights. Default: 0.

    Returns:
        Tensor: Shape (N, height, width, C), without the padding.
    """
    if not dropout and isinstance(bias, Tensor) and is_fast_in_graph(qkv, bias):
        return _in_graph(qkv, bias, _sizes_of(windows), wants_grad(qkv, bias))[0]
    if dropout or not is_fast(qkv, bias if isinstance(bias, Tensor) else None):
        return window_attention_reference(qkv, windows, bias, heads, dropout)
    chunks, bias_index = cached_chunks(heads, windows, qkv.device)
    if callable(bias):
        assert bias_index is not None
        bias = bias(bias_index[None])[0]
    high, wide = windows.padded
    out = _WindowAttention.apply(qkv, bias, windows, chunks).unflatten(1, (high, wide))
    return out[:, : windows.height, : windows.width]


def window_attention_reference(
    qkv: Tensor, windows: Windows, bias: Bias, heads: int, dropout: float = 0.0
) -> Tensor:
    """Compute :func:`window_attention` for all windows at once, in plain PyTorch."""
    plan = windows.plan(qkv.device)
    if callable(bias):
        assert plan.bias_index is not None
        bias = bias(plan.bias_index)
    else:
        bias = bias[None]
    if plan.mask is not None:
        bias = bias + plan.mask
    count, tokens, channels = qkv.shape
    dim = channels // 3
    # The images of a batch are one row of windows, and of tokens.
    image = torch.arange(count, device=qkv.device)[:, None, None]
    queries, keys = ((image * tokens + part).flatten(0, 1) for part in plan[:2])
    bias = bias.expand(plan.queries.shape[0], -1, -1, -1).repeat(count, 1, 1, 1)
    rows = qkv.reshape(count * tokens * 3 * heads, dim // heads)
    query, pair = (
        rows.index_select(0, where.flatten()).unflatten(0, where.shape)
        for where in rows_of_heads(queries, keys, heads)
    )
    key, value = pair.unbind(0)
    attend = F.scaled_dot_product_attention if is_graph() else attention
    out = attend(query, key, value, bias.to(query), dropout)
    # The memory layout of the result differs between implementations: copy, do not view.
    out = out.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    home = image * plan.queries.numel() + windows.home(qkv.device)
    return F.embedding(home, out.reshape(count * plan.queries.numel(), dim))


def attention_weights(
    qkv: Tensor, windows: Windows, bias: Bias, heads: int, places: Tensor
) -> Tensor:
    """Return the weights with which tokens attend in :func:`window_attention`, in plain PyTorch.

    Args:
        qkv (Tensor): As :func:`window_attention` takes it.
        windows (Windows): Which tokens attend to which.
        bias (Tensor or Callable): B, see :data:`Bias`.
        heads (int): Attention heads.
        places (Tensor): The attending tokens, as row * width + column, shape (places).

    Returns:
        Tensor: Shape (N, places, heads, keys), the keys in the order of the plan.
    """
    plan = windows.plan(qkv.device)
    home = windows.home(qkv.device).flatten()[places]
    window, token = home // plan.queries.shape[1], home % plan.queries.shape[1]
    if callable(bias):
        assert plan.bias_index is not None
        added = bias(plan.bias_index[window])
        added = added[torch.arange(len(places)), :, token]
    else:
        added = bias[:, token].transpose(0, 1)
    if plan.mask is not None:
        mask = plan.mask[window, 0]
        added = added + mask[torch.arange(len(places)), token % mask.shape[1]][:, None]
    rows = qkv.unflatten(-1, (3, heads, -1))
    query = rows[:, plan.queries[window, token], 0]
    score = torch.einsum(
        'nphc,npkhc->nphk', query * query.shape[-1] ** -0.5, rows[:, plan.keys[window], 1]
    )
    return (score + added).softmax(-1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float = 0.0
) -> Tensor:
    """Compute scaled dot-product attention by its formula, which has derivatives of every order and
    kind: (..., tokens, channels), (..., keys, channels) -> (..., tokens, channels).
    """
    score = query * query.shape[-1] ** -0.5 @ key.mT + bias
    return F.dropout(score.softmax(-1), dropout) @ value


def rows_of_heads(queries: Tensor, keys: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the row indices of the queries, and of the keys and values, of each window and head in
    a (tokens * 3 * heads, channels) matrix: shapes (windows, heads, tokens) and (2, windows, heads,
    keys).
    """
    head = torch.arange(3 * heads, device=keys.device).view(3, 1, heads, 1)
    return queries[:, None] * 3 * heads + head[0], keys[:, None] * 3 * heads + head[1:]


@cached(maxsize=16)
def cached_chunks(
    heads: int, windows: Windows, device: torch.device
) -> tuple[list[Plan], Tensor | None]:
    """Cut the plan of a map into chunks: whole rows of windows, or parts of a row. All blocks of a
    stage and all images of one size share the chunks.

    Args:
        heads (int): Attention heads, each with scores of its own.
        windows (Windows): The windows.
        device (torch.device): Device of the result.

    Returns:
        tuple: The chunks, without the keys that are masked for all of their windows; their bias
        indices are columns of the bias, shape (1 or windows, keys), or None for all columns. Then
        the bias index of the plan for each column, or None if the plan has no bias indices.
    """
    queries, keys, bias_index, mask = windows.plan(device)
    if queries.is_meta:  # no values to look at
        return [Plan(queries, keys, None, mask)], None if bias_index is None else bias_index[0]
    distinct, index = None, torch.arange(keys.shape[1], device=device).expand_as(keys)
    if bias_index is not None:
        distinct, index = bias_index.unique(return_inverse=True)
    columns = torch.arange(int(index.max()) + 1, device=device)
    cores = torch.get_num_threads() if keys.is_cpu else 128
    most = max(1, SCORES_PER_CORE * cores // (heads * queries.shape[1] * keys.shape[1]))
    across = windows.grid[1]

    def chunk(some: Tensor) -> Plan:
        inside: slice | Tensor = slice(None)
        if mask is not None:
            inside = (mask[some] == 0).flatten(0, 2).any(0)
        picked = index[some][:, inside]
        if (picked == picked[:1]).all():
            picked = picked[:1]
        added = None if mask is None else mask[some][..., inside]
        all_columns = picked.shape[0] == 1 and picked[0].equal(columns)
        return Plan(
            queries[some],
            keys[some][:, inside],
            None if all_columns else picked,
            added if added is not None and added.any() else None,
        )

    rows = torch.arange(len(queries), device=device).split(max(1, most // across) * across)
    chunks = [chunk(some) for row in rows for some in row.tensor_split(-(-len(row) // most))]
    # Largest first, so that the workspace of one chunk is large enough for the next.
    return sorted(chunks, key=lambda chunk: -chunk.keys.numel()), distinct


class Workspace:
    """Memory that chunks reuse. Allocating it for each chunk would cost more time than the
    computation.

    Args:
        like (Tensor): A tensor of the same type and device.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.space: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Return uninitialized memory of a shape; it overwrites the last tensor of that name."""
        if name not in self.space or self.space[name].numel() < prod(shape):
            self.space[name] = self.like.new_empty(prod(shape))
        return self.space[name][: prod(shape)].view(shape)

    def rows(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """Return the rows of x at the given indices."""
        return torch.index_select(x, 0, index, out=self(name, len(index), x.shape[1]))


def gather_tokens(
    space: Workspace, rows: Tensor, chunk: Plan, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather the queries, keys and values of some windows.

    Args:
        space (Workspace): Memory for them.
        rows (Tensor): Queries, keys and values of all tokens and heads, see :func:`rows_of_heads`.
        chunk (Plan): The windows.
        heads (int): Attention heads.

    Returns:
        tuple: The index of the queries among ``rows``; their index among (tokens, heads) rows, as
        the result is stored; the queries divided by sqrt(d), shape (windows * heads, tokens,
        channels); the keys and values, shape (2, windows * heads, keys, channels).
    """
    index, pair_index = rows_of_heads(chunk.queries, chunk.keys, heads)
    home = (index - 2 * heads * chunk.queries[:, None]).flatten()
    tokens, dim, index = index.shape[-1], rows.shape[1], index.flatten()
    # Scaled before the product, which in half precision could overflow.
    query = space.rows('query', rows, index).mul_(dim**-0.5).view(-1, tokens, dim)
    pair = space.rows('pair', rows, pair_index.flatten()).view(2, len(query), -1, dim)
    return index, home, query, pair


def scores(
    space: Workspace,
    query: Tensor,
    key: Tensor,
    bias: Tensor,
    chunk: Plan,
    minus: Tensor | None = None,
) -> Tensor:
    """Return the scores of some windows times log2(e), bias and mask included.

    Args:
        space (Workspace): Memory for them.
        query (Tensor): As :func:`gather_tokens` scales them, shape (windows * heads, tokens,
            channels of a head).
        key (Tensor): Shape (windows * heads, keys, channels of a head).
        bias (Tensor): Bias of all columns times log2(e), shape (heads, tokens, columns).
        chunk (Plan): The windows.
        minus (Tensor, optional): Subtracted from the scores, shape (windows, heads, tokens, 1).

    Returns:
        Tensor: In at least single precision, shape (windows * heads, tokens, keys).
    """
    if chunk.bias_index is None:
        bias = bias[None]
    else:
        bias = bias.index_select(-1, chunk.bias_index.flatten())
        bias = bias.unflatten(-1, chunk.bias_index.shape).movedim(-2, 0)
    shape = (len(chunk.queries), *bias.shape[1:])
    score = space('score', *shape)
    if query.dtype != score.dtype:
        # Converting by a copy first is faster than adding tensors of two dtypes.
        score.copy_((query @ key.mT).view(shape))
        torch.add(bias, score, alpha=LOG2_E, out=score)
        if minus is not None:
            score -= minus
    else:
        score = score.copy_(bias) if minus is None else torch.sub(bias, minus, out=score)
        flat = score.flatten(0, 1)
        torch.baddbmm(flat, query, key.mT, alpha=LOG2_E, out=flat)
    if chunk.mask is not None:
        score += chunk.mask
    return score.flatten(0, 1)


def subtract_top(score: Tensor, dtype: torch.dtype) -> Tensor | float:
    """Subtract from scores, in place, what keeps their powers of two in the range of a type, and
    return it: the largest score of each token, or 0 where all scores are small enough as they are.

    Args:
        score (Tensor): Shape (windows * heads, tokens, keys).
        dtype (torch.dtype): Type of the values that the powers are multiplied by.
    """
    if score.is_cpu:
        # Searching all scores takes 47 us where the largest of each token takes 240.
        bound = log2(torch.finfo(dtype).max) / 4
        low, high = (float(end) for end in score.aminmax())
        if -bound < low and high < bound:
            return 0.0
    top = score.amax(-1, keepdim=True)
    score -= top
    return top


def narrow_product(space: Workspace, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write the batched product of two matrices, of which the second may have few columns.

    Up to 8 columns in single precision it is the transposed product: of 352 matrices 49 x 49 and
    49 x 8 it takes 185 us instead of 473. From 16 columns on it would be slower.
    """
    if not (b.is_cpu and b.dtype == torch.float and b.shape[-1] <= 8):
        return torch.bmm(a, b, out=out)
    return out.copy_(torch.bmm(b.mT, a.mT, out=space('turned', *b.mT.shape[:2], a.shape[1])).mT)


class _WindowAttention(torch.autograd.Function):
    """Attention, some windows at a time. Besides its inputs, the backward pass needs only the
    output and the logarithm of the denominator of softmax.

    The arguments of ``apply`` are the queries, keys and values of all tokens, shape (N, tokens,
    3 * C); the bias of all columns, shape (heads, tokens of a window, columns); the windows, and
    their chunks, see :func:`cached_chunks`. The result has shape (N, tokens with queries, C).
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, windows: Windows, chunks: list[Plan]
    ) -> Tensor:
        out, log_sum = _attend(qkv, bias, windows, chunks, any(ctx.needs_input_grad))
        ctx.save_for_backward(qkv, bias, out, log_sum)
        ctx.windows, ctx.chunks = windows, chunks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, out, log_sum = ctx.saved_tensors
        if differentiates_again(grad):
            return _again(qkv, bias, ctx.windows, grad, ctx.needs_input_grad)
        return (*_gradients(grad, qkv, bias, out, log_sum, ctx.chunks), None, None)


def _attend(
    qkv: Tensor, bias: Tensor, windows: Windows, chunks: list[Plan], store: bool
) -> tuple[Tensor, Tensor]:
    """Return the result, and the logarithm of the sum that softmax divides by, if it is to be
    stored.
    """
    heads, queries = len(bias), prod(windows.padded)
    out = qkv.new_empty(len(qkv), queries, qkv.shape[-1] // 3)
    dim = out.shape[-1] // heads
    # In half precision scores are kept in single, and gradients are added up in it.
    exact = qkv.new_empty(0, dtype=torch.promote_types(qkv.dtype, torch.float))
    log_sum = exact.new_empty(len(qkv), queries * heads if store else 0)
    scaled, space, wide = bias.to(exact) * LOG2_E, Workspace(qkv), Workspace(exact)
    for image, chunk in product(range(len(qkv)), chunks):
        rows = qkv[image].view(-1, dim)
        _, home, query, (key, value) = gather_tokens(space, rows, chunk, heads)
        score = scores(wide, query, key, scaled, chunk)
        top = subtract_top(score, query.dtype)
        total = score.exp2_().sum(-1, keepdim=True)
        attended = narrow_product(space, score.to(value), value, query).div_(total)
        out[image].view(-1, dim).index_copy_(0, home, attended.view(-1, dim))
        if store:
            log_sum[image].index_copy_(0, home, total.log2_().add_(top).flatten())
    return out, log_sum


def _gradients(
    grad: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sum: Tensor, chunks: list[Plan]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`_attend`."""
    heads, tokens = bias.shape[:2]
    dim = out.shape[-1] // heads
    scaled = bias.to(torch.promote_types(qkv.dtype, torch.float)) * LOG2_E
    grad_qkv = torch.zeros_like(qkv, dtype=scaled.dtype)
    grad_bias = torch.zeros_like(scaled)
    grad = grad.contiguous()
    slope = (grad * out).unflatten(-1, (heads, dim)).sum(-1).flatten(1)

    space, wide = Workspace(qkv), Workspace(scaled)
    for image, chunk in product(range(len(qkv)), chunks):
        rows = qkv[image].view(-1, dim)
        index, home, query, pair = gather_tokens(space, rows, chunk, heads)
        key, value = pair
        minus = log_sum[image].index_select(0, home).view(-1, heads, tokens, 1)
        weight = scores(wide, query, key, scaled, chunk, minus).exp2_().to(value)
        grad_out = space.rows('out', grad[image].view(-1, dim), home).view(-1, tokens, dim)

        # The derivative of softmax, with the factors of the values.
        score = torch.bmm(grad_out, value.mT, out=space('derivative', *weight.shape))
        score.sub_(slope[image].index_select(0, home).view(-1, tokens, 1)).mul_(weight)
        of_bias = score.unflatten(0, (-1, heads))
        if chunk.bias_index is None:
            grad_bias += of_bias.sum(0)
        else:
            of_bias = of_bias.sum_to_size(len(chunk.bias_index), *of_bias.shape[1:])
            of_bias = of_bias.movedim(0, -2).flatten(-2).to(grad_bias)
            grad_bias.index_add_(-1, chunk.bias_index.flatten(), of_bias)

        narrow_product(space, weight.mT, grad_out, value)
        grad_query = narrow_product(space, score, key, grad_out).mul_(dim**-0.5).view(-1, dim)
        narrow_product(space, score.mT, query, key)
        grad_rows = grad_qkv[image].view(-1, dim)
        grad_rows.index_copy_(0, index, grad_query.to(grad_rows))
        # Adding one row per token takes half the time of one per head, copy included.
        token_rows = wide('rows', 2, *chunk.keys.shape, heads, dim)
        token_rows.copy_(pair.unflatten(1, (-1, heads)).transpose(2, 3))
        keys = chunk.keys * 3 + torch.arange(1, 3, device=qkv.device)[:, None, None]
        grad_qkv[image].view(-1, heads * dim).index_add_(
            0, keys.flatten(), token_rows.view(-1, heads * dim)
        )
    return grad_qkv.to(qkv), grad_bias.to(bias)


def _again(
    qkv: Tensor, bias: Tensor, windows: Windows, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of :class:`_WindowAttention` that can be differentiated again."""
    (high, wide), heads = windows.padded, len(bias)
    whole = dataclasses.replace(windows, height=high, width=wide)

    def reference(qkv: Tensor, bias: Tensor) -> Tensor:
        columns = whole.plan(qkv.device).bias_index
        if columns is not None:
            distinct = cached_chunks(heads, windows, qkv.device)[1]
            columns = torch.searchsorted(distinct, columns)
        of_windows = bias if columns is None else lambda _: bias[..., columns].movedim(2, 0)
        return window_attention_reference(qkv, whole, of_windows, heads).flatten(1, 2)

    return (*reference_gradients(reference, (qkv, bias), grad, needed[:2]), None, None)


def _sizes_of(windows: Windows) -> list[int]:
    """Return windows as numbers, which an operation of a graph can take."""
    down, right = windows.shift or (-1, -1)
    sizes = [windows.height, windows.width, windows.window_size, down, right]
    if isinstance(windows, FocalWindows):
        sizes += [windows.expand_size, windows.focal_window, windows.levels, windows.spare]
    return sizes


def _windows_of(sizes: Sequence[int]) -> Windows:
    """Return the windows that :func:`_sizes_of` has been given."""
    height, width, window_size, down, right, *focal = sizes
    shift = None if down < 0 else (down, right)
    return (FocalWindows if focal else Windows)(height, width, window_size, shift, *focal)


def _stored(qkv: Tensor, bias: Tensor, sizes: Sequence[int], store: bool) -> tuple[Tensor, Tensor]:
    """Return :func:`_attend` in windows that are given by their sizes, without the padding."""
    windows = _windows_of(sizes)
    chunks, _ = cached_chunks(len(bias), windows, qkv.device)
    out, log_sum = _attend(qkv.contiguous(), bias, windows, chunks, store)
    out = out.unflatten(1, windows.padded)[:, : windows.height, : windows.width]
    return out.contiguous(), log_sum


def _stored_gradients(
    grad: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sum: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`_stored`."""
    windows = _windows_of(sizes)
    chunks, _ = cached_chunks(len(bias), windows, qkv.device)
    below, right = (high - side for high, side in zip(windows.padded, sizes))
    if below or right:  # of which nothing was returned
        grad, out = (F.pad(part, (0, 0, 0, right, 0, below)) for part in (grad, out))
    grad, out = grad.flatten(1, 2), out.flatten(1, 2)
    of_qkv, of_bias = _gradients(grad, qkv.contiguous(), bias, out, log_sum, chunks)
    return of_qkv, of_bias.contiguous()


def _fake(qkv: Tensor, bias: Tensor, sizes: Sequence[int], store: bool) -> tuple[Tensor, Tensor]:
    height, width, *_ = sizes
    high, wide = _windows_of(sizes).padded
    exact = torch.promote_types(qkv.dtype, torch.float)
    return (
        qkv.new_empty(qkv.shape[0], height, width, qkv.shape[-1] // 3),
        qkv.new_empty(qkv.shape[0], high * wide * len(bias) if store else 0, dtype=exact),
    )


_in_graph = compiled_kernel('window_attention', _stored, _fake)
_gradients_in_graph = compiled_kernel(
    'window_attention_gradients',
    _stored_gradients,
    lambda grad, qkv, bias, *_: (qkv.new_empty(qkv.shape), bias.new_empty(bias.shape)),
)


def _store(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, ctx.sizes, _ = inputs
    ctx.save_for_backward(qkv, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _backward_in_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_gradients_in_graph(grad, *ctx.saved_tensors, ctx.sizes), None, None


_in_graph.register_autograd(_backward_in_graph, setup_context=_store)
