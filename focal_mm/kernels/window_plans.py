"""Plans of the tokens that the windows of a map attend to.

The tokens of a map are numbered row by row, first those of the map padded to whole windows, then
those of its pooled maps, if any. A graph serves maps of every size, where a side of one window
would be a special case. In a graph, therefore, the last window of a map is repeated, and pooled
maps have a spare row and column of windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import cached, compiled_kernel, is_compiled, is_graph

# Added to a score to exclude it from softmax. Focal Transformer's official code adds -100;
# exp(-100) vanishes too, but as a subnormal number, which is slow on processors.
MASKED = float('-inf')


class Plan(NamedTuple):
    """Tokens that windows attend to.

    Args:
        queries (Tensor): The tokens of each window, shape (windows, tokens).
        keys (Tensor): The tokens that they attend to, shape (windows, keys).
        bias_index (Tensor or None): The index of each key's bias, shape (windows, keys). None: in
            all windows the n-th key has the n-th bias.
        mask (Tensor or None): Added to the scores, 0 or minus infinity, shape (windows, 1, 1 or
            tokens, keys).
    """

    queries: Tensor
    keys: Tensor
    bias_index: Tensor | None = None
    mask: Tensor | None = None


def padding_to_multiple(side: int, multiple: int) -> int:
    """Return the padding that makes ``side`` a multiple of ``multiple``. ``-side % multiple`` is
    the same, but as a symbol it does not cancel out of the padded side, and tracing a network with
    dynamic shapes takes minutes.
    """
    return (side + multiple - 1) // multiple * multiple - side


def pad_to_multiple(x: Tensor, multiple: int, channels_first: bool = False) -> Tensor:
    """Zero-pad a map at the right and at the bottom to multiples of a side.

    Args:
        x (Tensor): Shape (N, H, W, C), or (N, C, H, W).
        multiple (int): The side.
        channels_first (bool): Whether the shape is (N, C, H, W). Default: False.
    """
    height, width = x.shape[2:] if channels_first else x.shape[1:3]
    below, right = (padding_to_multiple(side, multiple) for side in (height, width))
    # Padding by 0 copies the map. A graph always pads, to avoid a branch on the size.
    if not (is_graph() or below or right):
        return x
    return F.pad(x, (0, right, 0, below) if channels_first else (0, 0, 0, right, 0, below))


def add_spare_windows(x: Tensor, window_size: int) -> Tensor:
    """Zero-pad, in a graph, a map (N, H, W, C) by a row and a column of windows before pooling; see
    the docstring of this module.
    """
    return F.pad(x, (0, 0, 0, window_size, 0, window_size)) if is_graph() else x


def roll(x: Tensor, shifts: Sequence[int]) -> Tensor:
    """Roll a map (N, H, W, C) down and to the right by less than a side.

    Args:
        x (Tensor): The map.
        shifts (Sequence[int]): By how many tokens, down and to the right.
    """
    if not is_graph():
        return _rolled(x, list(shifts)) if any(shifts) else x
    if is_compiled():  # beside padding, inductor (torch 2.11) makes code that is not C++
        return _rolled_in_graph(x, list(shifts))
    # With sides that are symbols torch.roll has no ONNX.
    for dim, shift in enumerate(shifts, 1):
        index = torch.arange(x.shape[dim], device=x.device) - shift
        x = x.index_select(dim, wrap(index, x.shape[dim]))
    return x


def _rolled(x: Tensor, shifts: list[int]) -> Tensor:
    return x.roll(shifts, (1, 2)).contiguous()


_rolled_in_graph = compiled_kernel('roll', _rolled, lambda x, shifts: x.new_empty(x.shape))


def _store(ctx: Any, inputs: tuple[Tensor, list[int]], output: Tensor) -> None:
    ctx.back = [-shift for shift in inputs[1]]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _rolled_in_graph(grad, ctx.back), None


_rolled_in_graph.register_autograd(_gradients, setup_context=_store)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop a map (N, H, W, C) at the right and at the bottom to a height and a width."""
    if not is_graph() or is_compiled():
        x = x[:, : size[0], : size[1]]
        # Whether a view is contiguous would be a branch on the size, too.
        return x.clone(memory_format=torch.contiguous_format) if is_graph() else x
    # With sides that are symbols a slice would branch on the size.
    for dim, side in enumerate(size, 1):
        x = x.index_select(dim, torch.arange(side, device=x.device))
    return x


def wrap(index: Tensor, side: int) -> Tensor:
    """Wrap an index that is less than a side beyond either end of a map. The remainder is the same,
    but ONNX has no remainder by a symbol.
    """
    index = torch.where(index < 0, index + side, index)
    return torch.where(index < side, index, index - side)


def window_grid(rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each window of a map, row by row: shapes (windows, 1)."""
    count = rows * cols
    window = torch.arange(count + int(is_graph()), device=device)[:, None]
    # With clamp, inductor would treat everything that follows as one symbol and take minutes.
    window = torch.where(window < count, window, count - 1)
    return window // cols, window - window // cols * cols


@cached(maxsize=64)
def relative_index(window_size: int, region: int, device: torch.device) -> Tensor:
    """Return the index, in a table of (window_size + region - 1)^2 biases, of the bias between each
    query in a window and each key in a region, both counted row by row: shape (window_size^2,
    region^2).
    """
    index: Any = _index_in_graph if is_compiled() else _index
    return index(window_size, region, device)


def _index(window_size: int, region: int, device: torch.device) -> Tensor:
    side = window_size + region - 1
    query = torch.arange(window_size, device=device)[:, None]
    offset = query - torch.arange(region, device=device) + region - 1
    index = offset[:, None, :, None] * side + offset[:, None, :]
    return index.flatten(2).flatten(0, 1)


# Where a block is recomputed and its index is computed beside the sum of the gradients of a table,
# inductor (torch 2.11) adds them at wrong places, some of them outside of the table.
_index_in_graph = compiled_kernel('relative_index', _index, _index)


def surroundings(window_size: int, expand_size: int) -> list[tuple[int, int, int, int]]:
    """List the tokens around a window that Focal Transformer attends to one by one, in its order.

    The window is moved by ``expand_size`` tokens down and to the right, down and to the left, up
    and to the right, up and to the left. Each move adds the tokens that are outside of the original
    window, so that tokens near the middle of a side are listed twice.

    Args:
        window_size (int): Side of the window.
        expand_size (int): Depth of the surroundings, below the side of the window.

    Returns:
        list[tuple[int, int, int, int]]: For each key the move down and right, and its row and
        column in the moved window.
    """
    return [
        (down, right, i, j)
        for down, right in product((expand_size, -expand_size), repeat=2)
        for i, j in product(range(window_size), repeat=2)
        if not (0 <= i + down < window_size and 0 <= j + right < window_size)
    ]


@dataclass(frozen=True)
class Windows:
    """Windows of a map whose tokens attend to one another, as in Swin.

    Args:
        height (int): Height of the map before padding to whole windows.
        width (int): Width of the map before padding.
        window_size (int): Side of a window.
        shift (tuple[int, int], optional): By how many tokens windows are shifted down and to the
            right, less than a window. None: no shift.
    """

    height: int
    width: int
    window_size: int
    shift: tuple[int, int] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        size = self.window_size
        return (self.height + size - 1) // size, (self.width + size - 1) // size

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the map padded to whole windows."""
        rows, cols = self.grid
        return rows * self.window_size, cols * self.window_size

    def tokens(self, down: Tensor, right: Tensor) -> Tensor:
        """Return the numbers, in the map, of tokens given by their row and column in the shifted
        map; shape as ``down`` and ``right``.
        """
        high, wide = self.padded
        dy, dx = self.shift or (0, 0)
        return wrap(down + dy, high) * wide + wrap(right + dx, wide)

    def own_tokens(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of each window's tokens: shapes (windows, window_size^2)."""
        row, col = window_grid(*self.grid, device)
        place = torch.arange(self.window_size**2, device=device)
        return (
            row * self.window_size + place // self.window_size,
            col * self.window_size + place % self.window_size,
        )

    def shift_mask(self, down: Tensor, right: Tensor) -> Tensor | None:
        """Return the mask between a window's tokens that a shift brought together from opposite
        sides of the map, shape (windows, tokens, tokens). None: there is no shift.
        """
        if self.shift is None:
            return None
        (high, wide), (dy, dx) = self.padded, self.shift
        area = 2 * (down >= high - dy) + 1 * (right >= wide - dx)
        return torch.where(area[:, :, None] != area[:, None], MASKED, 0.0)

    def home(self, device: torch.device) -> Tensor:
        """Return the index of each token of the map when tokens are numbered window by window:
        shape (height, width).
        """
        size, (high, wide), shift = self.window_size, self.padded, self.shift or (0, 0)
        y, x = (
            wrap(torch.arange(n, device=device) - by, side)
            for n, by, side in ((self.height, shift[0], high), (self.width, shift[1], wide))
        )
        window = (y // size)[:, None] * (wide // size) + x // size
        return window * size**2 + (y % size)[:, None] * size + x % size

    def plan(self, device: torch.device) -> Plan:
        """Return the tokens of all windows."""
        down, right = self.own_tokens(device)
        tokens, mask = self.tokens(down, right), self.shift_mask(down, right)
        return Plan(tokens, tokens, None, None if mask is None else mask[:, None])


@dataclass(frozen=True)
class FocalWindows(Windows):
    """Windows that attend to themselves, their surroundings, and a region of each pooled map
    (Focal Transformer, Figure 4).

    Args:
        expand_size (int): Depth of the surroundings.
        focal_window (int): Side of the region of the first pooled map, odd.
        levels (int): Pooled maps, made from the shifted map; map k has 2^k x 2^k tokens for each
            window.
        spare (int): Spare rows and columns of windows of the pooled maps, see
            :func:`add_spare_windows`. Default: those of this moment.
    """

    expand_size: int = 0
    focal_window: int = 1
    levels: int = 0
    spare: int = field(default_factory=lambda: int(is_graph()))

    def fine_keys(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return rows and columns of each window's tokens and surroundings: shapes (windows,
        keys).
        """
        size, (row, col) = self.window_size, window_grid(*self.grid, device)
        offsets = list(product(range(size), repeat=2))
        offsets += [(i + dy, j + dx) for dy, dx, i, j in surroundings(size, self.expand_size)]
        down, right = torch.tensor(offsets, device=device).unbind(-1)
        # Surroundings wrap around the border, as in the official code, which rolls the map.
        high, wide = self.padded
        return wrap(row * size + down, high), wrap(col * size + right, wide)

    def plan(self, device: torch.device) -> Plan:
        """Return the tokens of all windows; the keys of a window begin with its own tokens."""
        (rows, cols), (high, wide) = self.grid, self.padded
        row, col = window_grid(rows, cols, device)
        own = slice(self.window_size**2)
        down, right = self.fine_keys(device)
        keys = [self.tokens(down, right)]
        outside = [torch.zeros_like(keys[0], dtype=torch.bool)]
        first, spare = high * wide, self.spare
        for level in range(self.levels):
            tall, broad = rows * 2**level, cols * 2**level
            reach = torch.arange(self.focal_window + 2**level - 1, device=device)
            reach = reach - self.focal_window // 2
            y, x = row * 2**level + reach, col * 2**level + reach
            y_out, x_out = (y < 0) | (y >= tall), (x < 0) | (x >= broad)
            outside.append((y_out[:, :, None] | x_out[:, None]).flatten(1))
            y, x = y.clamp(0, tall - 1), x.clamp(0, broad - 1)
            pitch = (cols + spare) * 2**level
            keys.append((first + y[:, :, None] * pitch + x[:, None]).flatten(1))
            first += (rows + spare) * 2**level * pitch
        all_keys = torch.cat(keys, -1)
        mask = None
        if self.levels:
            mask = torch.where(torch.cat(outside, -1)[:, None, None], MASKED, 0.0)
        apart = self.shift_mask(down[:, own], right[:, own])
        if apart is not None:
            apart = F.pad(apart, (0, all_keys.shape[1] - apart.shape[1]))[:, None]
            mask = apart if mask is None else mask + apart
        return Plan(all_keys[:, own], all_keys, None, mask)


@dataclass(frozen=True)
class NearestWindows(Windows):
    """Windows that attend to the tokens of each map that are nearest to the token in their middle,
    as in the authors' faster Focal Transformer. Distances are those in the shifted map.

    Args:
        topk (int): Tokens of each map that are attended to.
        levels (int): Pooled maps, 0 or 1, with one token for each window.
    """

    topk: int = 128
    levels: int = 0

    def plan(self, device: torch.device) -> Plan:
        """Return the tokens of all windows.

        The bias index of a key is the number of its offset from the middle of the window among all
        offsets in a map, (2 * high - 1) x (2 * wide - 1) at each level. Keys are sorted row by row,
        so that windows far from the border share one row of indices. In a graph each map has topk
        keys, some of which are masked.
        """
        (rows, cols), (high, wide), topk = self.grid, self.padded, self.topk
        cpu = torch.device('cpu')
        row, col = window_grid(rows, cols, cpu)
        spare = int(is_graph())
        keys, bias_index, absent = [], [], []
        for level in range(self.levels + 1):
            # Sides of the map, tokens from row to row in memory, tokens of this map from window to
            # window, and tokens of the fine map from key to key.
            tall, broad, pitch, stride, unit = (
                (rows, cols, cols + spare, 1, self.window_size)
                if level
                else (high, wide, wide, self.window_size, 1)
            )
            y, x = (
                place * stride + stride // 2 - torch.arange(side + spare, device=cpu)
                for place, side in ((row, tall), (col, broad))
            )
            y_square, x_square = y.float() ** 2, x.float() ** 2
            if spare:
                # The same number of keys on every map; the excess on a small map is masked.
                largest = torch.sym_max if isinstance(tall, torch.SymInt) else max
                token = torch.arange(largest(tall * broad, topk), device=cpu)
                down = token // broad
                square = y_square[:, down.clamp(max=tall)] + x_square[:, token - down * broad]
                parts = [square.masked_fill(token >= tall * broad, float('inf'))]
            else:
                parts = [
                    (down[:, :, None] + right[:, None]).flatten(1)
                    for down, right in zip(y_square.split(cols), x_square.split(cols), strict=True)
                ]
            # Among equally distant tokens, topk decides which are left out. It gets the numbers of
            # the official code, also on the CPU, to leave out the same tokens.
            count = topk if spare else min(topk, tall * broad)
            key = torch.cat([(-part.sqrt()).topk(count).indices for part in parts]).sort(-1).values
            key_y, masked = key // broad, key >= tall * broad
            key_x = key - key_y * broad
            down = y.gather(1, key_y.clamp(max=tall - 1)) * unit + high - 1
            right = x.gather(1, key_x) * unit + wide - 1
            offset = (level * (2 * high - 1) + down) * (2 * wide - 1) + right
            if level:
                token = high * wide + key_y * pitch + key_x
            else:
                token = self.tokens(key_y.clamp(max=tall - 1), key_x)
            nowhere = (high - 1) * (2 * wide - 1) + wide - 1
            bias_index.append(torch.where(masked, nowhere, offset))
            keys.append(token.masked_fill(masked, 0))
            absent.append(masked)
        mask = None
        if spare:
            mask = torch.where(torch.cat(absent, -1).to(device)[:, None, None], MASKED, 0.0)
        return Plan(
            self.tokens(*self.own_tokens(device)),
            torch.cat(keys, -1).to(device),
            torch.cat(bias_index, -1).to(device),
            mask,
        )
