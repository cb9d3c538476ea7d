"""Tensors of a checkpoint made to fit a model with other kernels, levels or windows.

The functions here know shapes, not modules. A module that owns such tensors derives from
:class:`FittedModule` and calls them from ``fit_state_dict``; whatever road leads to its
``load_state_dict`` (``init_cfg``, ``load_from``, ``resume``, plain PyTorch) then fits.
"""
from collections import Counter
from itertools import product
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A checkpoint that can't be read, or does not belong to the model it is loaded into."""


class FittedModule(nn.Module):
    """A module that fits the tensors of a state dict to its own shapes before they are loaded.

    Attributes:
        changes (Counter): What was changed since the last report, as ``(noun, what)`` pairs:
            ``('kernel', 'zero-padded 3x3 -> 9x9')``. The backbone that holds the module logs
            and clears it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changes: Counter = Counter()
        self._register_load_state_dict_pre_hook(self._before_load)

    def _before_load(self, state_dict: dict, prefix: str, *_) -> None:
        self.fit_state_dict(state_dict, prefix)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Changes, in place, the entries of ``state_dict`` that are this module's own.

        Args:
            state_dict (dict): A copy that may be changed; it may lack any key.
            prefix (str): What stands before this module's own names, with its dot.

        Raises:
            CheckpointError: If an entry can't be made to fit.
        """
        raise NotImplementedError


def fit_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pads or centre-crops a kernel about its middle.

    A padded kernel computes what the small one did (FocalNet, section 4.2: kernels grow by 6
    for detection, the new taps start at zero).

    Args:
        weight (Tensor): Shape (..., k, k), k odd.
        size (int): The odd size wanted.

    Returns:
        Tensor: Shape (..., size, size).
    """
    side = (size - weight.shape[-1]) // 2
    return F.pad(weight, (side, side, side, side))


def fit_gates(projection: Tensor, dim: int, levels: int) -> Tensor:
    """Adds or removes focal levels in FocalNet's input projection.

    Its rows are the query (``dim``), the context (``dim``), one gate a focal level in order,
    and the gate of the global context last. An added level's gate starts at zero: it has no
    say before it is trained, but for the global context, which is pooled from the last level.

    Args:
        projection (Tensor): Weight (2 * dim + L + 1, dim) or bias (2 * dim + L + 1).
        dim (int): Channels C.
        levels (int): The number of focal levels wanted.

    Returns:
        Tensor: Weight (2 * dim + levels + 1, dim) or bias (2 * dim + levels + 1).
    """
    query_context, gates, global_gate = projection.tensor_split((2 * dim, len(projection) - 1))
    added = max(levels - len(gates), 0)
    zeros = projection.new_zeros(added, *projection.shape[1:])
    return torch.cat((query_context, gates[:levels], zeros, global_gate))


def _bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    """(M, h, w) -> (M, height, width)."""
    return F.interpolate(maps[None], (height, width), mode='bilinear', align_corners=False)[0]


def fit_position_bias(table: Tensor, entries: int) -> Tensor:
    """Interpolates biases that depend on how far a key is from a query, down and to the right
    (Focal Transformer, section 4.2).

    Both distances run over one range, from the last key's distance to the first key's; the new
    range is laid over the old one from end to end.

    Args:
        table (Tensor): Shape (heads, n * n), the distance down first.
        entries (int): The square number of entries wanted.

    Returns:
        Tensor: Shape (heads, entries).

    Raises:
        CheckpointError: If the table is not square.
    """
    theirs, ours = isqrt(table.shape[1]), isqrt(entries)
    if theirs**2 != table.shape[1]:
        raise CheckpointError(f'a position bias table of {table.shape[1]} entries is not square, '
                              'which fits no window')
    return _bilinear(table.unflatten(1, (theirs, theirs)), ours, ours).flatten(1)


def surroundings(window_size: int, expand_size: int) -> list[tuple[int, int, int, int]]:
    """The tokens round a window that Focal Transformer attends to one by one, in its own order.

    The window is moved by ``expand_size`` tokens down and to the right, down and to the left, up
    and to the right, up and to the left; each time those of its tokens count that left its old
    place. In the middle of a side that makes the same tokens count twice.

    Args:
        window_size (int): Side of the window.
        expand_size (int): Depth of the surroundings, below the side of the window.

    Returns:
        list[tuple[int, int, int, int]]: Each key's move down and right, and its row and column in
        the moved window.
    """
    return [(down, right, i, j)
            for down, right in product((expand_size, -expand_size), repeat=2)
            for i, j in product(range(window_size), repeat=2)
            if not (0 <= i + down < window_size and 0 <= j + right < window_size)]


def fit_neighbour_bias(table: Tensor, window_size: int, expand_size: int) -> Tensor:
    """Interpolates the biases between a window and its :func:`surroundings`.

    They depend on the query's place in the window, which is a grid, and on the key's place in the
    surroundings, which is none. What a moved window shows of itself is one: a strip beside the
    window, one above or below it, and the corner between them. So the grid of queries and each
    of these twelve pieces are interpolated on their own.

    Args:
        table (Tensor): Shape (1, heads, w * w, keys).
        window_size (int): Side of the window wanted.
        expand_size (int): Depth of the surroundings wanted, above 0.

    Returns:
        Tensor: Shape (1, heads, window_size^2, keys').

    Raises:
        CheckpointError: If no window and depth have a table of this shape.
    """
    heads, queries, keys = table.shape[1:]
    theirs = isqrt(queries)
    depth = theirs - isqrt(max(queries - keys // 4, 0))
    old, new = _pieces(theirs, depth), _pieces(window_size, expand_size)
    if theirs**2 != queries or sum(map(len, old.values())) != keys:
        raise CheckpointError(f'a neighbour bias table of {queries} queries and {keys} keys fits '
                              'no window; this is no Focal Transformer checkpoint')
    grids = table[0].transpose(1, 2).reshape(heads * keys, theirs, theirs)
    values = _bilinear(grids, window_size, window_size).view(heads, keys, -1).transpose(1, 2)
    fitted = values.new_empty(heads, window_size**2, sum(map(len, new.values())))
    for piece, numbers in old.items():
        height, width = (depth if beyond else theirs - depth for beyond in piece[2:])
        grids = values[..., numbers].reshape(-1, height, width)
        height, width = (expand_size if beyond else window_size - expand_size
                         for beyond in piece[2:])
        grids = _bilinear(grids, height, width)
        fitted[..., new[piece]] = grids.view(*fitted.shape[:2], -1)
    return fitted[None]


def _pieces(window_size: int, expand_size: int) -> dict[tuple[bool, ...], list[int]]:
    """The numbers of the :func:`surroundings`' keys, row by row, in each of their rectangles: by
    whether the window was moved down and right, and the key is beyond its old rows and columns."""
    pieces: dict[tuple[bool, ...], list[int]] = {}
    for number, (down, right, i, j) in enumerate(surroundings(window_size, expand_size)):
        piece = (down > 0, right > 0,
                 not 0 <= i + down < window_size, not 0 <= j + right < window_size)
        pieces.setdefault(piece, []).append(number)
    return pieces


def fit_pooling(weight: Tensor, side: int) -> Tensor:
    """Resamples the weights of a sub-window pooling, and scales them so that a pooled token stays
    as large as it was.

    Args:
        weight (Tensor): Shape (M, n * n) or (M, 1, n, n).
        side (int): The side wanted.

    Returns:
        Tensor: Shape (M, side * side) or (M, 1, side, side).
    """
    theirs = isqrt(weight[0].numel())
    resized = _bilinear(weight.reshape(-1, theirs, theirs), side, side) * (theirs / side)**2
    return resized.flatten(1) if weight.ndim == 2 else resized[:, None]
