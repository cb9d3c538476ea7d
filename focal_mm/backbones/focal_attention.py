"""Focal attention, sections 3.1 and 3.2 of Focal Transformer (arXiv:2107.00641), and its faster
version.

The side of a sub-window is the paper's focal window size s_w. ``focal_window``, as in the official
code, is the paper's focal region size s_r.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn

from ..kernels.linear import project
from ..kernels.window_attention import Bias, window_attention
from ..kernels.window_plans import (
    FocalWindows,
    NearestWindows,
    Windows,
    relative_index,
    surroundings,
)
from ..weights.loading import FittedModule
from ..weights.resize import fit_neighbour_bias, fit_pooling, fit_position_bias


class SubWindowPool(FittedModule):
    """Sub-window pooling, Eq. 1: each side x side sub-window of a map becomes one token.

    Args:
        dim (int): Channels C.
        side (int): Side of a sub-window, s_w.
        method (str): ``'fc'``: one learned weight for each position; ``'conv'``: one for each
            position and channel; ``'mean'``; ``'max'``. Learned weights start as the mean.
    """

    methods = ('fc', 'conv', 'mean', 'max')

    def __init__(self, dim: int, side: int, method: str) -> None:
        super().__init__()
        self.side = side
        self.method = method
        shape = {'fc': (1, side * side), 'conv': (dim, 1, side, side)}.get(method)
        if shape is not None:
            self.weight = nn.Parameter(torch.full(shape, 1 / side**2))
            self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C), H and W multiples of the side -> (N, H / side, W / side, C)."""
        if self.method == 'conv':
            x = F.conv2d(
                x.permute(0, 3, 1, 2), self.weight, self.bias, self.side, groups=len(self.weight)
            )
            return x.permute(0, 2, 3, 1)
        x = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        if self.method == 'mean':
            return x.mean((2, 4))
        if self.method == 'max':
            return x.amax((2, 4))
        weight = self.weight.view(self.side, self.side)
        return torch.einsum('nyixjc,ij->nyxc', x, weight) + self.bias

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Resample the weights of another window size."""
        weight = state_dict.get(f'{prefix}weight')
        if weight is None or not hasattr(self, 'weight') or weight.ndim != self.weight.ndim:
            return
        theirs = weight.shape[-1] if self.method == 'conv' else round(weight.shape[-1] ** 0.5)
        if theirs != self.side:
            state_dict[f'{prefix}weight'] = fit_pooling(weight, self.side)
            self.changes[
                'sub-window pooling', f'resampled {theirs}x{theirs} -> {self.side}x{self.side}'
            ] += 1


class MultiLevelAttention(nn.Module):
    """Base of both versions of focal attention: the tokens of each window of a map attend to tokens
    of the map and of its pooled maps.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; a divisor of C.
        window_size (int): Side of a window, s_p. Default: 7.
        pooled_levels (int): Pooled maps that are attended to. Default: 0.
        qkv_bias (bool): Bias of the query, key and value projection. Default: True.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        proj_drop (float): Dropout rate of the output. Default: 0.

    Attributes:
        keep_maps (bool): Whether each forward stores on the module what its attention weights
            follow from: ``tokens``, the queries, keys and values of all tokens, detached, shape
            (N, tokens, 3 * C), and ``token_windows``, which tokens attend to which. Default: False.

    Raises:
        ValueError: If the heads don't divide C.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        pooled_levels: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f'FocalTransformer: {num_heads} num_heads do not divide {dim} '
                'channels; give a divisor'
            )
        self.num_heads = num_heads
        self.window_size = window_size
        self.pooled_levels = pooled_levels
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.keep_maps = False

    def forward(
        self, maps: Sequence[Tensor], height: int, width: int, shift: tuple[int, int] | None = None
    ) -> Tensor:
        """Attend from the first map to all.

        Args:
            maps (Sequence[Tensor]): The map, zero-padded to whole windows, shape (N, H', W', C),
                and its pooled maps, finest last: map k has 2^k x 2^k tokens for each window.
            height (int): Height of the map before padding.
            width (int): Width of the map before padding.
            shift (tuple[int, int], optional): By how many tokens windows are shifted down and to
                the right; the pooled maps are made from the shifted map. None: no shift.

        Returns:
            Tensor: Shape (N, height, width, C), without the padding.
        """
        qkv = project(self.qkv, torch.cat([level.flatten(1, 2) for level in maps], 1))
        return self.proj_drop(project(self.proj, self.attend(qkv, height, width, shift)))

    def attend(self, qkv: Tensor, height: int, width: int, shift: tuple[int, int] | None) -> Tensor:
        """Attend within windows: queries, keys and values of all maps, shape (N, tokens, 3 * C) ->
        (N, height, width, C).
        """
        windows = self.windows(height, width, shift)
        if self.keep_maps:
            self.tokens, self.token_windows = qkv.detach(), windows
        dropout = self.attn_drop if self.training else 0.0
        bias = self.bias_of(windows, qkv.dtype)
        return window_attention(qkv, windows, bias, self.num_heads, dropout)

    def windows(self, height: int, width: int, shift: tuple[int, int] | None) -> Windows:
        """Return which tokens of a map attend to which."""
        raise NotImplementedError

    def bias_of(self, windows: Windows, dtype: torch.dtype) -> Bias:
        """Return B of Eq. 3 in the windows of a map, as :func:`window_attention` takes it."""
        raise NotImplementedError


class BiasTables(nn.Module):
    """Position biases of the pooled levels, named as in a ``nn.ParameterList``. Calling the module
    returns them, so that tools that load weights when a module is called (accelerate) work.

    Args:
        tables (Sequence[nn.Parameter]): The table of each level.
    """

    def __init__(self, tables: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.levels = len(tables)
        for level, table in enumerate(tables):
            self.register_parameter(str(level), table)

    def forward(self) -> tuple[Tensor, ...]:
        """Return the table of each level."""
        return tuple(getattr(self, str(level)) for level in range(self.levels))


class FocalAttention(MultiLevelAttention, FittedModule):
    r"""Window-wise focal attention, section 3.2.1 and Figure 4.

    The tokens of a window attend to the window, to the tokens round it, and to sub-windows near
    and far, each pooled to one token:

    .. math:: \text{Attention}(Q_i, K_i, V_i) =
        \text{Softmax}\Big(\frac{Q_i K_i^T}{\sqrt d} + B\Big) V_i \qquad\text{(Eq. 3)}

    As in the official code, B depends on the query's position in its window at every level (the
    paper: only at the finest), and the surroundings wrap around the map's border.

    Args:
        args: Arguments of :class:`MultiLevelAttention`.
        expand_size (int): Depth of the surroundings that are attended to token by token.
            Default: 0.
        focal_window (int): Side of the region of the first pooled map, s_r, odd. Default: 1.
        kwargs: Arguments of :class:`MultiLevelAttention`.

    Raises:
        ValueError: If the heads don't divide C, the surroundings are as deep as the window, or
            the region is even.
    """

    def __init__(
        self, *args: Any, expand_size: int = 0, focal_window: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        window_size, num_heads = self.window_size, self.num_heads
        if not 0 <= expand_size < window_size:
            raise ValueError(
                f'FocalTransformer: expand_sizes={expand_size} with window_size='
                f'{window_size}; choose from 0 to {window_size - 1}'
            )
        if focal_window < 1 or focal_window % 2 == 0:
            raise ValueError(
                f'FocalTransformer: focal_windows={focal_window}; a region has its '
                'window in the middle: give an odd number'
            )
        self.expand_size = expand_size
        self.focal_window = focal_window

        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        neighbours = None
        if expand_size:
            neighbours = nn.Parameter(
                torch.empty(
                    1, num_heads, window_size**2, len(surroundings(window_size, expand_size))
                )
            )
            trunc_normal_(neighbours, std=0.02)
        self.register_parameter('relative_position_bias_table_to_neighbors', neighbours)
        tables = []
        for level in range(self.pooled_levels):
            region = focal_window + 2**level - 1
            table = nn.Parameter(torch.empty(num_heads, (window_size + region - 1) ** 2))
            trunc_normal_(table, std=0.02)
            tables.append(table)
        self.relative_position_bias_table_to_windows = BiasTables(tables)

    def windows(self, height: int, width: int, shift: tuple[int, int] | None) -> FocalWindows:
        """Return window, surroundings and regions of a map."""
        return FocalWindows(
            height,
            width,
            self.window_size,
            shift,
            self.expand_size,
            self.focal_window,
            self.pooled_levels,
        )

    def bias_of(self, windows: Windows, dtype: torch.dtype) -> Tensor:
        """Return B of Eq. 3, which is the same on every map."""
        return self.position_bias()

    def position_bias(self) -> Tensor:
        """Return B of Eq. 3, for a map of any size: shape (num_heads, window_size^2, keys)."""
        table, size = self.relative_position_bias_table, self.window_size
        biases = [table[relative_index(size, size, table.device)].permute(2, 0, 1)]
        if self.expand_size:
            neighbours: Any = self.relative_position_bias_table_to_neighbors
            biases.append(neighbours[0])
        for level, table in enumerate(self.relative_position_bias_table_to_windows()):
            region = self.focal_window + 2**level - 1
            biases.append(table[:, relative_index(size, region, table.device)])
        return torch.cat(biases, -1)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Interpolate the biases of another window size, focal window or depth of surroundings;
        see :mod:`focal_mm.weights.resize`. Missing biases of the surroundings start at zero.
        """
        qkv = state_dict.get(f'{prefix}qkv.weight')
        for name, own in self.named_parameters():
            theirs = state_dict.get(prefix + name)
            if not name.startswith('relative_position_bias_table'):
                continue
            if name.endswith('neighbors') and theirs is None and qkv is not None:
                state_dict[prefix + name] = qkv.new_zeros(own.shape)  # own may be on meta
                self.changes[
                    'neighbour bias table', 'not in the checkpoint, zero to begin with'
                ] += 1
            if theirs is None or theirs.shape == own.shape or theirs.ndim != own.ndim:
                continue
            if name.endswith('neighbors'):
                noun, fitted = (
                    'neighbour',
                    fit_neighbour_bias(theirs, self.window_size, self.expand_size),
                )
            elif '_to_windows' in name:
                noun, fitted = 'region', fit_position_bias(theirs, own.shape[1])
            else:
                noun, fitted = (
                    'window',
                    fit_position_bias(theirs.t(), own.shape[0]).t().contiguous(),
                )
            state_dict[prefix + name] = fitted
            sizes = ('x'.join(map(str, table.shape)) for table in (theirs, fitted))
            self.changes[f'{noun} bias table', f'interpolated {" -> ".join(sizes)}'] += 1


class NearestAttention(MultiLevelAttention):
    """Attention to the nearest tokens and windows.

    The tokens of a window attend to the tokens nearest to its middle, and to the nearest windows,
    each pooled to one token. A small network computes B of Eq. 3 from the offset of the key from
    the query, in tokens. The number of tokens depends neither on the map's size nor on its
    borders, so nothing wraps around and nothing is masked, shifted windows included.

    Args:
        args: Arguments of :class:`MultiLevelAttention`; ``pooled_levels`` is 1 where windows are
            attended to, or 0.
        topk (int): Tokens of each map that are attended to. Default: 128.
        kwargs: Arguments of :class:`MultiLevelAttention`.

    Raises:
        ValueError: If the heads don't divide C, ``topk`` is below 1, or there is more than one
            pooled level.
    """

    def __init__(self, *args: Any, topk: int = 128, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if topk < 1:
            raise ValueError(f'FocalTransformer: focal_topk={topk}; give 1 or more (128)')
        if self.pooled_levels > 1:
            raise ValueError(
                f'FocalTransformer: focal_levels={self.pooled_levels + 1} with '
                'focal_topk; the official code takes wrong tokens from a third level: '
                'choose 1 or 2'
            )
        self.topk = topk
        head_dim = self.proj.in_features // self.num_heads
        self.coord2rpb_all = nn.ModuleList(
            nn.Sequential(nn.Linear(2, head_dim), nn.ReLU(), nn.Linear(head_dim, self.num_heads))
            for _ in range(self.pooled_levels + 1)
        )

    def windows(self, height: int, width: int, shift: tuple[int, int] | None) -> NearestWindows:
        """Return the nearest tokens of each map."""
        return NearestWindows(height, width, self.window_size, shift, self.topk, self.pooled_levels)

    def bias_of(self, windows: Windows, dtype: torch.dtype) -> Bias:
        """Return B of Eq. 3 as a function of the bias indices of a plan."""
        return partial(self.position_bias, size=windows.padded, dtype=dtype)

    def position_bias(self, offsets: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Return B of Eq. 3 between each query of a window and keys.

        Args:
            offsets (Tensor): Offsets of the keys from the middle of the window, numbered as the
                bias indices of :class:`NearestWindows`, shape (windows, keys).
            size (tuple[int, int]): Height and width of the padded map.
            dtype (torch.dtype): Type of the networks' input.

        Returns:
            Tensor: Shape (windows, num_heads, window_size^2, keys).
        """
        high, wide = size
        down, right = (torch.arange(1 - side, side, device=offsets.device) for side in (high, wide))
        grid = torch.stack(torch.meshgrid(down, right, indexing='ij'), -1)
        table = torch.stack([network(grid.to(dtype)) for network in self.coord2rpb_all]).flatten(
            0, 2
        )
        query = torch.arange(self.window_size, device=offsets.device) - self.window_size // 2
        index = offsets[:, None] + (query[:, None] * (2 * wide - 1) + query).flatten()[:, None]
        return F.embedding(index, table).permute(0, 3, 1, 2)
