"""Functions that fit tensors of a checkpoint to other kernels, focal levels or windows.

They know tensors, not modules: a module that owns such tensors derives from
:class:`~focal_mm.weights.loading.FittedModule` and calls them.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.window_plans import surroundings


def fit_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pad or center-crop a kernel about its middle.

    A padded kernel computes what the small one did (FocalNet, section 4.2: kernels grow by 6
    for detection, the new taps start at zero).

    Args:
        weight (Tensor): Shape (..., k, k), k odd.
        size (int): Size of the result, odd.

    Returns:
        Tensor: Shape (..., size, size).
    """
    side = (size - weight.shape[-1]) // 2
    return F.pad(weight, (side, side, side, side))


def fit_gates(projection: Tensor, dim: int, levels: int) -> Tensor:
    """Add or remove focal levels in FocalNet's input projection.

    Its rows are the query (``dim``), the context (``dim``), one gate a focal level in order,
    and the gate of the global context last. The gate of an added level starts at zero, so that
    before training the level only enters the global context, which is pooled from the last level.

    Args:
        projection (Tensor): Weight (2 * dim + L + 1, dim) or bias (2 * dim + L + 1).
        dim (int): Channels C.
        levels (int): Number of focal levels of the result.

    Returns:
        Tensor: Weight (2 * dim + levels + 1, dim) or bias (2 * dim + levels + 1).
    """
    query_context, gates, global_gate = projection.tensor_split((2 * dim, len(projection) - 1))
    added = max(levels - len(gates), 0)
    zeros = projection.new_zeros(added, *projection.shape[1:])
    return torch.cat((query_context, gates[:levels], zeros, global_gate))


def _bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps: (M, h, w) -> (M, height, width)."""
    return F.interpolate(maps[None], (height, width), mode='bilinear', align_corners=False)[0]


def fit_position_bias(table: Tensor, entries: int) -> Tensor:
    """Interpolate relative position biases, one for each offset of a key from a query (Focal
    Transformer, section 4.2).

    Vertical and horizontal offsets have the same range; the new range is stretched over the old
    one from end to end.

    Args:
        table (Tensor): Shape (heads, n * n), the vertical offset first.
        entries (int): Number of entries of the result, a square.

    Returns:
        Tensor: Shape (heads, entries).

    Raises:
        ValueError: If the table is not square.
    """
    theirs, ours = isqrt(table.shape[1]), isqrt(entries)
    if theirs**2 != table.shape[1]:
        raise ValueError(
            f'a position bias table of {table.shape[1]} entries is not square, which fits no window'
        )
    return _bilinear(table.unflatten(1, (theirs, theirs)), ours, ours).flatten(1)


def fit_neighbour_bias(table: Tensor, window_size: int, expand_size: int) -> Tensor:
    """Interpolate the biases between a window and its :func:`surroundings`.

    The queries form a grid, the keys do not. Each of the four moves of the window adds three
    rectangles of keys: a strip beside the window, a strip above or below it, and the corner
    between them. The grid of queries and each of these twelve rectangles are interpolated
    separately.

    Args:
        table (Tensor): Shape (1, heads, w * w, keys).
        window_size (int): Side of the new window.
        expand_size (int): Depth of the new surroundings, above 0.

    Returns:
        Tensor: Shape (1, heads, window_size^2, keys').

    Raises:
        ValueError: If no window and depth have a table of this shape.
    """
    heads, queries, keys = table.shape[1:]
    theirs = isqrt(queries)
    depth = theirs - isqrt(max(queries - keys // 4, 0))
    old, new = _pieces(theirs, depth), _pieces(window_size, expand_size)
    if theirs**2 != queries or sum(map(len, old.values())) != keys:
        raise ValueError(
            f'a neighbour bias table of {queries} queries and {keys} keys fits '
            'no window; this is no Focal Transformer checkpoint'
        )
    grids = table[0].transpose(1, 2).reshape(heads * keys, theirs, theirs)
    values = _bilinear(grids, window_size, window_size).view(heads, keys, -1).transpose(1, 2)
    fitted = values.new_empty(heads, window_size**2, sum(map(len, new.values())))
    for piece, numbers in old.items():
        height, width = (depth if beyond else theirs - depth for beyond in piece[2:])
        grids = values[..., numbers].reshape(-1, height, width)
        height, width = (
            expand_size if beyond else window_size - expand_size for beyond in piece[2:]
        )
        grids = _bilinear(grids, height, width)
        fitted[..., new[piece]] = grids.view(*fitted.shape[:2], -1)
    return fitted[None]


def _pieces(window_size: int, expand_size: int) -> dict[tuple[bool, ...], list[int]]:
    """Return the indices of the keys in each rectangle of the :func:`surroundings`, row by row.

    Four booleans identify a rectangle: the window was moved down, it was moved to the right, the
    key is outside of the original rows, and outside of the original columns.
    """
    pieces: dict[tuple[bool, ...], list[int]] = {}
    for number, (down, right, i, j) in enumerate(surroundings(window_size, expand_size)):
        piece = (
            down > 0,
            right > 0,
            not 0 <= i + down < window_size,
            not 0 <= j + right < window_size,
        )
        pieces.setdefault(piece, []).append(number)
    return pieces


def fit_pooling(weight: Tensor, side: int) -> Tensor:
    """Resample the weights of a sub-window pooling, scaled so that the magnitude of a pooled token
    is kept.

    Args:
        weight (Tensor): Shape (M, n * n) or (M, 1, n, n).
        side (int): Side of the new sub-window.

    Returns:
        Tensor: Shape (M, side * side) or (M, 1, side, side).
    """
    theirs = isqrt(weight[0].numel())
    resized = _bilinear(weight.reshape(-1, theirs, theirs), side, side) * (theirs / side) ** 2
    return resized.flatten(1) if weight.ndim == 2 else resized[:, None]


def fit_sine_columns(weight: Tensor, columns: int) -> Tensor:
    """Spread the weights of a sine embedding of boxes over an embedding with more frequencies.

    With n features a coordinate, features 2k and 2k + 1 are the sine and cosine of frequency
    10000^(-2k / n). A multiple of n has the same frequencies and others between them, whose
    weights are zero: the product stays the same.

    Args:
        weight (Tensor): Shape (C, 4 * n), for the four coordinates in turn.
        columns (int): Number of columns of the result, a multiple of 4 * n.

    Returns:
        Tensor: Shape (C, columns).

    Raises:
        ValueError: If it is no multiple.
    """
    if columns % weight.shape[1]:
        raise ValueError(
            f'an embedding of {weight.shape[1]} features does not fit one of {columns}'
        )
    pairs = weight.unflatten(1, (-1, 1, 2))
    spread = F.pad(pairs, (0, 0, 0, columns // weight.shape[1] - 1))
    return spread.flatten(1)
