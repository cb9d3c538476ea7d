"""Focal Transformer: Focal Attention for Long-Range Interactions in Vision Transformers
(Yang et al., NeurIPS 2021, arXiv:2107.00641).

Sections, equations and tables below are the paper's. What the paper calls the focal window size
s_w is the side of a sub-window here, and its focal region size s_r is ``focal_windows``, as in
the official code.
"""
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..weights.resize import (FittedModule, fit_neighbour_bias, fit_pooling, fit_position_bias,
                              surroundings)
from .layers import (Mlp, PatchEmbed, Stage, StagedBackbone, is_graph, per_stage, project,
                     relative_index, resolve_arch)
from .window_attention import (MASKED, Plan, WindowAttention, attend, home_places, kept_parts,
                               roll, window_grid, window_tokens, wrap)


class SubWindowPool(FittedModule):
    """Sub-window pooling, Eq. 1: a map's side x side sub-windows, each made one token.

    Args:
        dim (int): Channels C.
        side (int): Side of a sub-window, s_w.
        method (str): ``'fc'``: one learned weight a position; ``'conv'``: one a position and
            channel; ``'mean'``; ``'max'``. The learned ones start as the mean.
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
            x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, self.side,
                         groups=len(self.weight))
            return x.permute(0, 2, 3, 1)
        x = x.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side))
        if self.method == 'mean':
            return x.mean((2, 4))
        if self.method == 'max':
            return x.amax((2, 4))
        weight = self.weight.view(self.side, self.side)
        return torch.einsum('nyixjc,ij->nyxc', x, weight) + self.bias

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Resamples the weights of another window size."""
        weight = state_dict.get(f'{prefix}weight')
        if weight is None or not hasattr(self, 'weight') or weight.ndim != self.weight.ndim:
            return
        theirs = weight.shape[-1] if self.method == 'conv' else round(weight.shape[-1]**0.5)
        if theirs != self.side:
            state_dict[f'{prefix}weight'] = fit_pooling(weight, self.side)
            self.changes['sub-window pooling',
                         f'resampled {theirs}x{theirs} -> {self.side}x{self.side}'] += 1


def fine_offsets(window_size: int, expand_size: int) -> list[tuple[int, int]]:
    """(y, x) of a window's fine keys from its first token: the window, then its surroundings."""
    window = list(product(range(window_size), repeat=2))
    return window + [(i + dy, j + dx) for dy, dx, i, j in surroundings(window_size, expand_size)]


def gather_plan(height: int, width: int, window_size: int, expand_size: int, focal_window: int,
                levels: int, shift: int | None, device: torch.device) -> Plan:
    """Which tokens each window attends to (Figure 4): itself, its surroundings, and its region of
    each pooled map.

    Tokens are counted row by row over the map padded to whole windows, then over each pooled map.

    Args:
        height (int): That of the map before padding.
        width (int): That of the map before padding.
        window_size (int): Side of a window.
        expand_size (int): Depth of the surroundings.
        focal_window (int): Side of the region of the first pooled map.
        levels (int): Pooled maps; map k has 2^k x 2^k tokens a window.
        shift (int, optional): By how many tokens the map has been rolled up and to the left. None:
            it has not been.
        device (torch.device): That of the result.

    Returns:
        Plan: Without places. The keys of a window begin with its own tokens.
    """
    rows, cols = ((n + window_size - 1) // window_size for n in (height, width))
    row, col = window_grid(rows, cols, device)
    high, wide = rows * window_size, cols * window_size
    # Beyond the border the official code meets the opposite side, for it rolls the map.
    y, x = torch.tensor(fine_offsets(window_size, expand_size), device=device).unbind(-1)
    y, x = wrap(row * window_size + y, high), wrap(col * window_size + x, wide)
    keys = [y * wide + x]
    outside = [torch.zeros_like(keys[0], dtype=torch.bool)]
    first, spare = high * wide, int(is_graph())
    for level in range(levels):
        tall, broad = rows * 2**level, cols * 2**level
        reach = torch.arange(focal_window + 2**level - 1, device=device) - focal_window // 2
        y, x = row * 2**level + reach, col * 2**level + reach
        y_out, x_out = (y < 0) | (y >= tall), (x < 0) | (x >= broad)
        outside.append((y_out[:, :, None] | x_out[:, None]).flatten(1))
        y, x = y.clamp(0, tall - 1), x.clamp(0, broad - 1)
        pitch = (cols + spare) * 2**level
        keys.append((first + y[:, :, None] * pitch + x[:, None]).flatten(1))
        first += (rows + spare) * 2**level * pitch
    keys, outside = torch.cat(keys, -1), torch.cat(outside, -1)
    mask = None
    if levels or shift is not None:
        mask = torch.where(outside[:, None, None], MASKED, 0.)

    own = keys[:, :window_size**2]
    if shift is not None:
        # What the shift brought from the opposite side is no neighbour in its window.
        y, x = (torch.arange(n, device=device) >= n - shift for n in (high, wide))
        area = (2 * y[:, None] + x).flatten()[own]
        apart = torch.where(area[:, None] != area[:, :, None], MASKED, 0.)
        mask = mask + F.pad(apart, (0, keys.shape[1] - window_size**2))[:, None]
    return Plan(own, keys, None, mask)


def nearest_plan(height: int, width: int, window_size: int, topk: int, levels: int,
                 device: torch.device) -> Plan:
    """Which tokens each window attends to in the faster version: of each map those nearest to the
    token in the middle of the window.

    Args:
        height (int): That of the map before padding.
        width (int): That of the map before padding.
        window_size (int): Side of a window.
        topk (int): Tokens of each map.
        levels (int): Pooled maps, 0 or 1.
        device (torch.device): That of the result.

    Returns:
        Plan: A key's place is how far it is from the middle of the window: the number of that
        offset in :meth:`NearestAttention.position_bias`. Keys come row by row, so that windows
        far from the border have the same row of places. In a graph each map has topk keys, and a
        place of -1 says that it is none.
    """
    rows, cols = ((n + window_size - 1) // window_size for n in (height, width))
    row, col = window_grid(rows, cols, torch.device('cpu'))
    high, wide, spare = rows * window_size, cols * window_size, int(is_graph())
    keys, places = [], []
    for level in range(levels + 1):
        # Sides of the map and how far it is from row to row in memory, and tokens from a window to
        # the next and from a key to the next.
        tall, broad, pitch, stride, unit = (rows, cols, cols + spare, 1, window_size) if level else (
            high, wide, wide, window_size, 1)
        y, x = (place * stride + stride // 2 - torch.arange(side + spare)
                for place, side in ((row, tall), (col, broad)))
        y_square, x_square = y.float()**2, x.float()**2
        if spare:
            # As many keys on every map, so that those that a small one lacks are no keys.
            largest = torch.sym_max if isinstance(tall, torch.SymInt) else max
            token = torch.arange(largest(tall * broad, topk))
            down = token // broad
            square = y_square[:, down.clamp(max=tall)] + x_square[:, token - down * broad]
            parts = [square.masked_fill(token >= tall * broad, float('inf'))]
        else:
            parts = ((down[:, :, None] + right[:, None]).flatten(1)
                     for down, right in zip(y_square.split(cols), x_square.split(cols)))
        # Where some of equally distant tokens have to be left out, which ones is up to topk. It is
        # given what the official code gives it, on the CPU like there, to leave out the same.
        count = topk if spare else min(topk, tall * broad)
        key = torch.cat([(-part.sqrt()).topk(count).indices for part in parts]).sort(-1).values
        key_y, lacking = key // broad, key >= tall * broad
        key_x = key - key_y * broad
        down = y.gather(1, key_y.clamp(max=tall - 1)) * unit + high - 1
        place = (level * (2 * high - 1) + down) * (2 * wide - 1) + x.gather(1, key_x) * unit + wide - 1
        places.append(place.masked_fill(lacking, -1))
        keys.append((level * high * wide + key_y * pitch + key_x).masked_fill(lacking, 0))
    own = window_tokens(rows, cols, window_size, device)
    return Plan(own, torch.cat(keys, -1).to(device), torch.cat(places, -1).to(device))


class PlannedAttention(nn.Module):
    """What both versions of focal attention share: the queries of each window attend to the keys
    that a plan gathers for it.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; they divide C.
        window_size (int): Side of a window.
        qkv_bias (bool): Bias of the query, key and value projection.
        attn_drop (float): Dropout rate of the attention weights.
        proj_drop (float): Dropout rate of the output.

    Raises:
        ValueError: If the heads don't divide C.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, qkv_bias: bool,
                 attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'FocalTransformer: {num_heads} num_heads do not divide {dim} '
                             'channels; give a divisor')
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, maps: Sequence[Tensor], height: int, width: int,
                shift: int | None = None) -> Tensor:
        """Attends from the first map to all.

        Args:
            maps (Sequence[Tensor]): The map, zero-padded to whole windows, shape (N, H', W', C),
                and its pooled maps, finest last: map k has 2^k x 2^k tokens a window. In a graph
                these are of a map that has a row and a column of windows more.
            height (int): That of the map before padding.
            width (int): That of the map before padding.
            shift (int, optional): By how many tokens the padded map has been rolled up and to the
                left. None: it has not been.

        Returns:
            Tensor: Shape (N, height, width, C), rolled back and without the padding.
        """
        high, wide = maps[0].shape[1:3]
        qkv = project(self.qkv, torch.cat([level.flatten(1, 2) for level in maps], 1))
        bias = self.position_bias(high, wide)
        dropout = self.attn_drop if self.training else 0.
        make, *sizes = self.plan(height, width, shift, qkv.device)
        if dropout or is_graph():
            plan = make(*sizes)
            bias = self.score_bias(bias, plan.places)
            by = 0 if shift is None else shift  # a truth that a graph would have to know
            home = home_places(height, width, high, wide, self.window_size, (by, by), qkv.device)
            out = attend(qkv, plan, bias, home, self.num_heads, dropout)
        else:
            parts, places = kept_parts(self.num_heads, make, *sizes)
            bias = self.score_bias(bias, None if places is None else places[None])[0]
            out = WindowAttention.apply(qkv, high * wide, bias, parts).unflatten(1, (high, wide))
            if shift is not None:
                out = out.roll((shift, shift), (1, 2))
            out = out[:, :height, :width]
        return self.proj_drop(project(self.proj, out))

    def plan(self, height: int, width: int, shift: int | None, device: torch.device) -> tuple:
        """The function that plans for a map of this size, and what it is to be given."""
        raise NotImplementedError

    def position_bias(self, high: int, wide: int) -> Tensor:
        """The learned biases of a high x wide map, which all windows share."""
        raise NotImplementedError

    def score_bias(self, bias: Tensor, places: Tensor | None) -> Tensor:
        """The biases of keys at some places, shape (windows, keys), from each query's own place:
        (windows, num_heads, window_size^2, keys)."""
        raise NotImplementedError


class FocalAttention(PlannedAttention, FittedModule):
    r"""Window-wise focal attention, section 3.2.1 and Figure 4.

    The tokens of a window attend to the window, to the tokens round it, and to sub-windows near
    and far, each pooled to one token:

    .. math:: \text{Attention}(Q_i, K_i, V_i) =
        \text{Softmax}\Big(\frac{Q_i K_i^T}{\sqrt d} + B\Big) V_i \qquad\text{(Eq. 3)}

    As in the official code, B depends on the query's position in its window at every level (the
    paper: only at the finest), and the surroundings wrap around the map's border.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; they divide C.
        window_size (int): Side of a window, s_p. Default: 7.
        expand_size (int): Depth of the surroundings that are attended to token by token.
            Default: 0.
        focal_window (int): Side of the region of the first pooled map, s_r, odd. Default: 1.
        pooled_levels (int): Pooled maps that are attended to. Default: 0.
        qkv_bias (bool): Bias of the query, key and value projection. Default: True.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        proj_drop (float): Dropout rate of the output. Default: 0.

    Raises:
        ValueError: If the heads don't divide C, the surroundings are as deep as the window, or
            the region is even.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7, expand_size: int = 0,
                 focal_window: int = 1, pooled_levels: int = 0, qkv_bias: bool = True,
                 attn_drop: float = 0., proj_drop: float = 0.) -> None:
        super().__init__(dim, num_heads, window_size, qkv_bias, attn_drop, proj_drop)
        if not 0 <= expand_size < window_size:
            raise ValueError(f'FocalTransformer: expand_sizes={expand_size} with window_size='
                             f'{window_size}; choose from 0 to {window_size - 1}')
        if focal_window < 1 or focal_window % 2 == 0:
            raise ValueError(f'FocalTransformer: focal_windows={focal_window}; a region has its '
                             'window in the middle: give an odd number')
        self.expand_size = expand_size
        self.focal_window = focal_window
        self.pooled_levels = pooled_levels

        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1)**2, num_heads))
        self.register_buffer('relative_position_index', relative_index(window_size, window_size),
                             persistent=False)
        neighbours = None
        if expand_size:
            neighbours = nn.Parameter(torch.empty(
                1, num_heads, window_size**2, len(surroundings(window_size, expand_size))))
            nn.init.trunc_normal_(neighbours, std=0.02)
        self.register_parameter('relative_position_bias_table_to_neighbors', neighbours)
        tables = []
        for level in range(pooled_levels):
            region = focal_window + 2**level - 1
            table = nn.Parameter(torch.empty(num_heads, (window_size + region - 1)**2))
            tables.append(nn.init.trunc_normal_(table, std=0.02))
            self.register_buffer(f'relative_position_index_{level}',
                                 relative_index(window_size, region), persistent=False)
        self.relative_position_bias_table_to_windows = nn.ParameterList(tables)

    def plan(self, height: int, width: int, shift: int | None, device: torch.device) -> tuple:
        """For :func:`gather_plan`."""
        return (gather_plan, height, width, self.window_size, self.expand_size, self.focal_window,
                self.pooled_levels, shift, device)

    def score_bias(self, bias: Tensor, places: None) -> Tensor:
        """All windows have the same."""
        return bias

    def position_bias(self, high: int, wide: int) -> Tensor:
        """B of Eq. 3, whatever the map's size: shape (1, num_heads, window_size^2, keys)."""
        biases = [self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)]
        if self.expand_size:
            biases.append(self.relative_position_bias_table_to_neighbors[0])
        for level, table in enumerate(self.relative_position_bias_table_to_windows):
            biases.append(table[:, getattr(self, f'relative_position_index_{level}')])
        return torch.cat(biases, -1)[None]

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Interpolates the biases of another window size, focal window or depth of surroundings;
        see :mod:`focal_mm.weights.resize`. Missing ones of the surroundings start at zero."""
        for name, own in self.named_parameters():
            theirs = state_dict.get(prefix + name)
            if not name.startswith('relative_position_bias_table'):
                continue
            if name.endswith('neighbors') and theirs is None and f'{prefix}qkv.weight' in state_dict:
                state_dict[prefix + name] = torch.zeros_like(own)
                self.changes['neighbour bias table', 'not in the checkpoint, zero to begin with'] += 1
            if theirs is None or theirs.shape == own.shape or theirs.ndim != own.ndim:
                continue
            if name.endswith('neighbors'):
                noun, fitted = 'neighbour', fit_neighbour_bias(
                    theirs, self.window_size, self.expand_size)
            elif '_to_windows' in name:
                noun, fitted = 'region', fit_position_bias(theirs, own.shape[1])
            else:
                noun, fitted = 'window', fit_position_bias(theirs.t(), own.shape[0]).t()
            state_dict[prefix + name] = fitted
            sizes = ('x'.join(map(str, table.shape)) for table in (theirs, fitted))
            self.changes[f'{noun} bias table', f'interpolated {" -> ".join(sizes)}'] += 1


class NearestAttention(PlannedAttention):
    """The attention of the authors' faster version (focal_transformer_v2.py of
    microsoft/Focal-Transformer, which no paper describes).

    The tokens of a window attend to the tokens nearest to its middle, and to the nearest windows,
    each pooled to one token. B of Eq. 3 comes from a small network that is given how far the key
    is from the query, in tokens. The number of tokens depends neither on the map's size nor on its
    borders, so nothing wraps around and nothing is masked, shifted windows included.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; they divide C.
        window_size (int): Side of a window. Default: 7.
        topk (int): Tokens of each map that are attended to. Default: 128.
        pooled_levels (int): 1: windows are attended to; 0: only tokens. Default: 0.
        qkv_bias (bool): Bias of the query, key and value projection. Default: True.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        proj_drop (float): Dropout rate of the output. Default: 0.

    Raises:
        ValueError: If the heads don't divide C, there is no token, or more than a pooled level.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7, topk: int = 128,
                 pooled_levels: int = 0, qkv_bias: bool = True, attn_drop: float = 0.,
                 proj_drop: float = 0.) -> None:
        super().__init__(dim, num_heads, window_size, qkv_bias, attn_drop, proj_drop)
        if topk < 1:
            raise ValueError(f'FocalTransformer: focal_topk={topk}; give 1 or more (128)')
        if pooled_levels > 1:
            raise ValueError(f'FocalTransformer: focal_levels={pooled_levels + 1} with focal_topk; '
                             'the official code takes wrong tokens from a third level: choose 1 '
                             'or 2')
        self.topk = topk
        self.pooled_levels = pooled_levels
        self.coord2rpb_all = nn.ModuleList(
            nn.Sequential(nn.Linear(2, dim // num_heads), nn.ReLU(),
                          nn.Linear(dim // num_heads, num_heads))
            for _ in range(pooled_levels + 1))

    def plan(self, height: int, width: int, shift: int | None, device: torch.device) -> tuple:
        """For :func:`nearest_plan`."""
        return nearest_plan, height, width, self.window_size, self.topk, self.pooled_levels, device

    def position_bias(self, high: int, wide: int) -> Tensor:
        """B by how far down and to the right of the key the query is: shape (1 + pooled_levels,
        2 * high - 1, 2 * wide - 1, num_heads), no distance in the middle."""
        weight = self.coord2rpb_all[0][0].weight
        down, right = (torch.arange(1 - side, side).to(weight) for side in (high, wide))
        offsets = torch.stack(torch.meshgrid(down, right, indexing='ij'), -1)
        return torch.stack([network(offsets) for network in self.coord2rpb_all])

    def score_bias(self, bias: Tensor, places: Tensor) -> Tensor:
        """From the numbers of the offsets."""
        query = torch.arange(self.window_size, device=places.device) - self.window_size // 2
        number = places[:, None] + (query[:, None] * bias.shape[2] + query).flatten()[:, None]
        if not is_graph():
            return F.embedding(number, bias.flatten(0, 2)).permute(0, 3, 1, 2)
        bias = F.embedding(number.clamp(min=0), bias.flatten(0, 2)).permute(0, 3, 1, 2)
        return bias.masked_fill((places < 0)[:, None, None], MASKED)


class FocalTransformerBlock(BaseModule):
    """Focal attention and an MLP, each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads.
        window_size (int): Side of a window. Default: 7.
        expand_size (int): Depth of the surroundings. Default: 0.
        focal_level (int): Levels of attention, the fine one included. Default: 1.
        focal_window (int): Side of the region of the first pooled map. Default: 1.
        focal_pool (str): How sub-windows are pooled: a method of :class:`SubWindowPool`, or
            ``'none'`` for the fine level alone. Default: ``'fc'``.
        focal_topk (int or None): Tokens of each level that :class:`NearestAttention` attends to,
            whatever ``expand_size`` and ``focal_window`` are. None: :class:`FocalAttention`.
            Default: None.
        shift_size (int): By how many tokens windows are shifted. Default: 0.
        mlp_ratio (float): Hidden channels of the MLP, as a multiple of C. Default: 4.
        qkv_bias (bool): Bias of the query, key and value projection. Default: True.
        drop (float): Dropout rate in the MLP and after the attention. Default: 0.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        drop_path (float): Rate of stochastic depth. Default: 0.
        layer_scale_init_value (float or None): A learned scale a channel on both branches, and
            what it starts at. None: none. Default: None.
        act_cfg (dict): Activation. Default: GELU.
        norm_cfg (dict): Norms. Default: LN.

    Raises:
        ValueError: For an unknown pooling, or more levels than the window can be halved.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7, expand_size: int = 0,
                 focal_level: int = 1, focal_window: int = 1, focal_pool: str = 'fc',
                 focal_topk: int | None = None, shift_size: int = 0, mlp_ratio: float = 4.,
                 qkv_bias: bool = True, drop: float = 0., attn_drop: float = 0.,
                 drop_path: float = 0.,
                 layer_scale_init_value: float | None = None,
                 act_cfg: dict = dict(type='GELU'), norm_cfg: dict = dict(type='LN')) -> None:
        super().__init__()
        if focal_pool not in (*SubWindowPool.methods, 'none'):
            raise ValueError(f'FocalTransformer: unknown focal_pool {focal_pool!r}; choose from '
                             f'{", ".join(SubWindowPool.methods)}, none')
        if not 1 <= focal_level <= window_size.bit_length() + 1:
            raise ValueError(
                f'FocalTransformer: focal_levels={focal_level} with window_size={window_size}; '
                'the fine level counts, and each pooled one after the first halves the '
                f'sub-window: choose from 1 to {window_size.bit_length() + 1}')
        levels = 0 if focal_pool == 'none' else focal_level - 1
        self.window_size = window_size
        self.shift_size = shift_size
        self.pool_layers = nn.ModuleList(
            SubWindowPool(dim, window_size >> level, focal_pool) for level in range(levels))
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        if focal_topk is None:
            self.attn = FocalAttention(dim, num_heads, window_size, expand_size, focal_window,
                                       levels, qkv_bias, attn_drop, drop)
        else:
            self.attn = NearestAttention(dim, num_heads, window_size, focal_topk, levels, qkv_bias,
                                         attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)
        for name in ('gamma_1', 'gamma_2'):
            gamma = None
            if layer_scale_init_value is not None:
                gamma = nn.Parameter(torch.full((dim, ), float(layer_scale_init_value)))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self._add(x, self._attend(self.norm1(x)), self.gamma_1)
        return self._add(x, self.mlp(self.norm2(x)), self.gamma_2)

    def _add(self, x: Tensor, out: Tensor, gamma: Tensor | None) -> Tensor:
        return x + self.drop_path(out if gamma is None else gamma * out)

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        side = self.window_size
        rows, cols = (height + side - 1) // side, (width + side - 1) // side
        shift = None
        if self.shift_size and (is_graph() or min(rows, cols) > 1):
            # A map of one window has no other window to shift to; a graph does not ask.
            shift = self.shift_size * (1 - 1 // rows) * (1 - 1 // cols)
        # The padding is attended to, as in the official code.
        lacking = 0, 0, 0, cols * side - width, 0, rows * side - height
        # Zeros of nothing would be a copy; but a graph of any size does not ask how many.
        if is_graph() or any(lacking):
            x = F.pad(x, lacking)
        if shift is not None and is_graph():
            x = roll(x, (-shift, -shift), x.shape[1:3])
        elif shift is not None:
            x = x.roll((-shift, -shift), (1, 2))
        maps, tall, broad = [x], rows, cols
        if is_graph():
            # Pooled maps have a window more each way, for one is a special case. (A sum with a
            # symbol is not seen to divide its multiples, a quotient is.)
            tall, broad = (height + 2 * side - 1) // side, (width + 2 * side - 1) // side
            x = F.pad(x, (0, 0, 0, (broad - cols) * side, 0, (tall - rows) * side))
        for level, pool in enumerate(self.pool_layers):
            # Where sub-windows do not fill the windows, the rim of the map is left out.
            filled = 2**level * pool.side
            top, left = (n * (side - filled) // 2 for n in (rows, cols))
            maps.append(pool(x[:, top:top + tall * filled, left:left + broad * filled]))
        return self.attn(maps, height, width, shift)


class PreNormPatchEmbed(PatchEmbed):
    """Patch embedding of a normalised map, that its values stay small; as
    :class:`focal_mm.backbones.layers.PatchEmbed` else."""

    def __init__(self, in_channels: int, *args, **kwargs) -> None:
        super().__init__(in_channels, *args, **kwargs)
        self.pre_norm = nn.GroupNorm(1, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / patch_size), ceil(W / patch_size), embed_dims)."""
        return super().forward(self.pre_norm(x))


def _arch(embed_dims: int, depths: tuple[int, ...], use_conv_embed: bool,
          focal_topk: int | None) -> dict:
    """Heads have 32 channels, and levels and regions are the same in all of Table 1."""
    return dict(embed_dims=embed_dims, depths=depths,
                num_heads=tuple(embed_dims // 32 * 2**i for i in range(len(depths))),
                focal_levels=2, focal_windows=(7, 5, 3, 1), expand_sizes=(3, 3, 3, 0),
                use_conv_embed=use_conv_embed, focal_topk=focal_topk)


@MODELS.register_module()
class FocalTransformer(StagedBackbone):
    """Focal Transformer, section 3.

    Parameters have the names of the official code, so that its checkpoints load as they are;
    biases are fitted to the model (:meth:`FocalAttention.fit_state_dict`).

    Any map is padded to whole windows. In the official classifier a stage whose map is smaller
    than its window gets other parameters; here it keeps them.

    Args:
        arch (str or dict): A name below, or the settings themselves (``embed_dims`` and ``depths``
            at least). Default: ``'tiny'``.

            - ``tiny``, ``small``, ``base``: Table 1.
            - ``large``: section 4.1, with 192 channels; the 196 printed there do not divide into
              heads of 32. In UPerNet, whose head makes Swin-L the 234 M of Table 6, it has
              237.5 M (``large_conv`` 245.3 M) where that table has 240 M, and 196 channels would
              have 246.6 M (254.7 M). In mmdet's HTC and DyHead 254.7 M (262.4 M) and 213.3 M
              (221.1 M), for 265 M and 229 M in Table 5.
            - the same with ``_conv``: overlapped patch embedding.
            - ``fast_tiny``, ``fast_small``, ``fast_base``: the authors' faster version, with
              :class:`NearestAttention` and overlapped patch embedding.
        embed_dims (int, optional): Channels of the first stage, doubled from stage to stage.
        depths (int or Sequence[int], optional): Blocks of each stage (Table 9). This and the other
            sizes override the arch's; an int stands for equal stages.
        num_heads (int or Sequence[int], optional): Attention heads of each stage.
        window_size (int): Side of a window, Table 7. Default: 7.
        focal_levels (int or Sequence[int], optional): Levels of attention of each stage, the fine
            one included. 1 leaves the pooled maps out (Figure 5, window and local).
        focal_windows (int or Sequence[int], optional): Side of the region of the first pooled map
            of each stage, in windows, odd; it is 2^k - 1 sub-windows more for map k. ImageNet
            checkpoints have (7, 5, 3, 1), the paper's detectors (15, 13, 9, 7) (section 4.2).
        expand_sizes (int or Sequence[int], optional): Depth of the surroundings that each stage
            attends to token by token. 0: none (Figure 5, window and global).
        focal_pool (str): How sub-windows are pooled, see :class:`SubWindowPool`; ``'none'`` leaves
            the pooled maps out. Default: ``'fc'``.
        focal_topk (int, optional): Tokens of each level that a window attends to in the faster
            version, where ``focal_windows`` and ``expand_sizes`` have no meaning.
        use_conv_embed (bool, optional): Overlapped patch embedding.
        use_shift (bool): Shifts the windows of every other block (Table 8), where the map is
            larger than a window. Default: False.
        use_pre_norm (bool): A norm before the patch embeddings between stages. Default: False.
        qkv_bias (bool): Bias of the query, key and value projections. Default: True.
        layer_scale_init_value (float or None): Start of the learned scale on each branch. None:
            no scale. Default: None.
        in_channels (int): Channels of the image. Default: 3.
        patch_size (int): Side of a patch in pixels. Default: 4.
        mlp_ratio (float): Hidden channels of the MLPs, as a multiple. Default: 4.
        drop_rate (float): Dropout rate. Default: 0.
        attn_drop_rate (float): Dropout rate of the attention weights. Default: 0.
        drop_path_rate (float): Stochastic depth of the last block, from 0 at the first one on.
            Default: 0.
        norm_cfg (dict): Norms. Default: LN with eps 1e-5.
        act_cfg (dict): Activations. Default: GELU.
        out_indices (Sequence[int], optional): Stages whose maps are returned. Default: all.
        out_norm (bool): Whether each map passes a norm of its own, ``norm{i}``. False: the raw
            maps. Default: True.
        frozen_stages (int): -1: none; 0: the patch embedding; n: and the first n stages.
            Default: -1.
        with_cp (bool): Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg (dict or list, optional): Initialisation. Default: linear layers from a normal
            distribution truncated at 2, std 0.02.

    Raises:
        ValueError: For an unknown arch or pooling, or sizes that do not match the stages, the
            window or each other.
    """

    archs: dict[str, dict] = {
        template.format(name): _arch(embed_dims, depths, *kind)
        for template, *kind in (('{}', False, None), ('{}_conv', True, None),
                                ('fast_{}', True, 128))
        for name, embed_dims, depths in (
            ('tiny', 96, (2, 2, 6, 2)), ('small', 96, (2, 2, 18, 2)),
            ('base', 128, (2, 2, 18, 2)), ('large', 192, (2, 2, 18, 2)))
        if (template, name) != ('fast_{}', 'large')
    }

    # What the official code stores and its sizes determine.
    _stored_constants = ('relative_position_index', 'valid_ind_', 'attn_mask', 'topk_cloest_',
                         'window_coords')

    def __init__(self,
                 arch: str | dict = 'tiny',
                 embed_dims: int | None = None,
                 depths: int | Sequence[int] | None = None,
                 num_heads: int | Sequence[int] | None = None,
                 window_size: int = 7,
                 focal_levels: int | Sequence[int] | None = None,
                 focal_windows: int | Sequence[int] | None = None,
                 expand_sizes: int | Sequence[int] | None = None,
                 focal_pool: str = 'fc',
                 focal_topk: int | None = None,
                 use_conv_embed: bool | None = None,
                 use_shift: bool = False,
                 use_pre_norm: bool = False,
                 qkv_bias: bool = True,
                 layer_scale_init_value: float | None = None,
                 in_channels: int = 3,
                 patch_size: int = 4,
                 mlp_ratio: float = 4.,
                 drop_rate: float = 0.,
                 attn_drop_rate: float = 0.,
                 drop_path_rate: float = 0.,
                 norm_cfg: dict = dict(type='LN', eps=1e-5),
                 act_cfg: dict = dict(type='GELU'),
                 out_indices: Sequence[int] | None = None,
                 out_norm: bool = True,
                 frozen_stages: int = -1,
                 with_cp: bool = False,
                 init_cfg: dict | list | None = dict(
                     type='TruncNormal', layer='Linear', std=0.02)) -> None:
        sizes = resolve_arch(
            'FocalTransformer', self.archs, arch, embed_dims=embed_dims, depths=depths,
            num_heads=num_heads, focal_levels=focal_levels, focal_windows=focal_windows,
            expand_sizes=expand_sizes, focal_topk=focal_topk,
            use_conv_embed=use_conv_embed)
        depths = sizes['depths']
        count = len(depths)
        heads, levels, windows, expand = (
            per_stage('FocalTransformer', name, sizes[name], count)
            for name in ('num_heads', 'focal_levels', 'focal_windows', 'expand_sizes'))
        dims = [sizes['embed_dims'] * 2**i for i in range(count)]
        stem_overlap, overlap = (2, 1) if sizes['use_conv_embed'] else (None, None)
        embed = PreNormPatchEmbed if use_pre_norm else PatchEmbed
        drop_paths = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())

        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                FocalTransformerBlock(
                    dim, heads[i], window_size, expand[i], levels[i], windows[i], focal_pool,
                    sizes['focal_topk'],
                    shift_size=window_size // 2 if use_shift and number % 2 else 0,
                    mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop=drop_rate,
                    attn_drop=attn_drop_rate, drop_path=next(drop_paths),
                    layer_scale_init_value=layer_scale_init_value, act_cfg=act_cfg,
                    norm_cfg=norm_cfg)
                for number in range(depths[i])
            ]
            down = embed(dim, 2 * dim, 2, overlap, norm_cfg) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(
            PatchEmbed(in_channels, dims[0], patch_size, stem_overlap, norm_cfg), stages, dims,
            drop_rate, out_indices, out_norm, norm_cfg, frozen_stages, init_cfg)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """As :meth:`StagedBackbone.fit_state_dict`; constants of the official code are left out."""
        super().fit_state_dict(state_dict, prefix)
        for key in list(state_dict):
            if key.startswith(prefix) and key.split('.')[-1].startswith(self._stored_constants):
                del state_dict[key]
