"""Focal modulation, section 3.2 of FocalNet (arXiv:2203.11926), and its ablations (Tables 10, 11).

Equations, sections and tables below are the paper's.
"""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn

from ..kernels.depthwise import DepthwiseConv2d
from ..kernels.dispatch import can_fuse, fused_module, fused_step
from ..kernels.gated_context import gated_context, kernels_of
from ..kernels.linear import PatchConv2d, multiply_linear, project, project_map, project_parts
from ..kernels.window_attention import attention
from ..weights.loading import FittedModule, initial_state
from ..weights.resize import fit_gates
from .base import build_norm


@fused_module
class FocalModulation(FittedModule):
    r"""Focal modulation, section 3.2 and Algorithm 1.

    Each token's query is multiplied by a modulator: the context of the token, gathered at L focal
    levels (Eq. 4) and once over the whole map, each level weighted by the token's own gate (Eq. 5):

    .. math:: y_i = q(x_i) \odot h\Big(\sum_{\ell=1}^{L+1} g_i^\ell \cdot z_i^\ell\Big)
        \qquad\text{(Eq. 6)}

    Args:
        dim (int): Channels C.
        focal_level (int): L, the number of focal levels; with 0, only the global context is used.
        focal_window (int): Kernel size k of the first level, odd.
        focal_factor (int): Growth of k from level to level, even. Default: 2.
        use_postln (bool): Applies a norm before the output projection. Default: False.
        normalize_modulator (bool): Divides the gathered context by L + 1. Default: False.
        act_cfg (dict): The activation of Eq. 4. Default: GELU.
        norm_cfg (dict): The norm of ``use_postln``. Default: LN.
        drop (float): Dropout rate of the output. Default: 0.

    Attributes:
        keep_maps (bool): Whether each forward stores, detached, on the module what Eq. 5 sums and
            what becomes of it (Figures 3 and 4): ``gates``, shape (N, H, W, L + 1); ``contexts``,
            a list of z^1 to z^L, each (N, H, W, C), and z^(L+1), (N, 1, 1, C); and ``modulator``,
            (N, H, W, C). Levels that a variant leaves out are not among them. The context is then
            gathered step by step, not by one kernel. Default: False.

    Raises:
        ValueError: For a kernel size that is even or below 1, or too few levels.
    """

    fewest_levels = 0

    def __init__(
        self,
        dim: int,
        focal_level: int,
        focal_window: int,
        focal_factor: int = 2,
        use_postln: bool = False,
        normalize_modulator: bool = False,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        kernels = [focal_window + focal_factor * level for level in range(focal_level)]
        for level, kernel in enumerate(kernels, 1):
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(
                    f'FocalNet: focal_windows={focal_window} with focal_factor={focal_factor} '
                    f'makes kernel {kernel} at level {level}; kernels are odd: take an odd window '
                    'and an even factor'
                )
        if focal_level < self.fewest_levels:
            raise ValueError(
                f'FocalNet: {type(self).__name__} has nothing to gather at '
                f'focal_levels={focal_level}; give {self.fewest_levels} or more'
            )
        self.dim = dim
        self.focal_level = focal_level
        self.normalize_modulator = normalize_modulator
        self.keep_maps = False

        self.f = nn.Linear(dim, 2 * dim + focal_level + 1)
        self.h = PatchConv2d(dim, dim, 1)
        self.act = build_activation_layer(act_cfg)
        self.focal_layers = nn.ModuleList(
            nn.Sequential(DepthwiseConv2d(dim, k), build_activation_layer(act_cfg)) for k in kernels
        )
        self.ln = build_norm(norm_cfg, dim) if use_postln else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        query, context, gates = self.split(x)
        context = self.gather(context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2))
        return self.emit(query, context.permute(0, 2, 3, 1))

    @fused_step
    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project a map (N, H, W, C) to queries and z^0, both (N, H, W, C), and gates, (N, H, W,
        L + 1).
        """
        query, context, gates = project_parts(self.f, x, (self.dim, self.dim, self.focal_level + 1))
        return query, context, gates

    @fused_step
    def emit(self, query: Tensor, context: Tensor) -> Tensor:
        """Modulate queries by the gathered context (Eq. 6) and project: (N, H, W, C) both."""
        modulator = project_map(self.h, context.permute(0, 3, 1, 2))
        if self.keep_maps:
            self.modulator = modulator.detach()
        steps = (self, 'modulate'), (self.ln, nn.Identity), (self.proj, nn.Linear)
        if can_fuse(*steps):
            out = multiply_linear(query, modulator, self.proj.weight, self.proj.bias)
        else:
            out = project(self.proj, self.ln(self.modulate(query, modulator)))
        return self.proj_drop(out)

    def gather(self, context: Tensor, gates: Tensor) -> Tensor:
        """Gather the context of every token: steps 1 and 2, in one kernel unless a step has been
        replaced.

        Args:
            context (Tensor): z^0, shape (N, C, H, W).
            gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        kernels = kernels_of(self.focal_layers)
        steps = (self, 'contextualize'), (self, 'aggregate'), (self.act, nn.GELU)
        if kernels is not None and not self.keep_maps and can_fuse(*steps):
            context = gated_context(context, gates, *kernels)
        else:
            context = self.aggregate(self.contextualize(context), gates)
        return context / (self.focal_level + 1) if self.normalize_modulator else context

    @fused_step
    def contextualize(self, context: Tensor) -> list[Tensor]:
        """Compute the contexts of step 1, hierarchical contextualization (Eq. 4).

        Args:
            context (Tensor): z^0, shape (N, C, H, W).

        Returns:
            list[Tensor]: z^1 to z^L, shape (N, C, H, W), and z^(L+1), shape (N, C, 1, 1).
        """
        levels = []
        for layer in self.focal_layers:
            context = layer(context)
            levels.append(context)
        return [*levels, self.act(context.mean((2, 3), keepdim=True))]

    @fused_step
    def aggregate(self, levels: list[Tensor], gates: Tensor) -> Tensor:
        """Sum the contexts in step 2, gated aggregation (Eq. 5).

        Args:
            levels (list[Tensor]): z^1 to z^(L+1), as :meth:`contextualize` gives them.
            gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        if self.keep_maps:
            self.gates = gates[:, : len(levels)].permute(0, 2, 3, 1).detach()
            self.contexts = [level.permute(0, 2, 3, 1).detach() for level in levels]
        gated = (level * gates[:, i : i + 1] for i, level in enumerate(levels))
        return sum(gated, start=gates.new_zeros(()))

    @fused_step
    def modulate(self, query: Tensor, modulator: Tensor) -> Tensor:
        """Combine query and modulator (Eq. 6), both (N, H, W, C)."""
        return query * modulator

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Zero-pad or crop kernels, add or remove focal levels; see
        :mod:`focal_mm.weights.resize`. An added level keeps the kernel it was initialized with.

        Raises:
            CheckpointError: If a kernel in the checkpoint is even.
        """
        weight = state_dict.get(f'{prefix}f.weight')
        levels = self.focal_level
        if weight is not None and weight.shape[1:] == (self.dim,) and len(weight) > 2 * self.dim:
            levels = len(weight) - 2 * self.dim - 1
        if levels != self.focal_level and levels >= 0:
            for name in ('f.weight', 'f.bias'):
                if prefix + name in state_dict:
                    state_dict[prefix + name] = fit_gates(
                        state_dict[prefix + name], self.dim, self.focal_level
                    )
            what = 'added, gates at zero' if self.focal_level > levels else 'removed'
            self.changes['focal level', what] += abs(self.focal_level - levels)

        own = self.focal_layers.state_dict(prefix=f'{prefix}focal_layers.')
        if weight is not None and levels < self.focal_level:
            own = initial_state(self.focal_layers, f'{prefix}focal_layers.', weight.device)
        for level in range(max(levels, self.focal_level)):
            key = f'{prefix}focal_layers.{level}.0.weight'
            if key not in own:
                state_dict.pop(key, None)
            elif level >= levels:
                state_dict.setdefault(key, own[key])
            else:
                self.fit_odd_kernel(state_dict, key, own[key].shape[-1])


class AdditiveModulation(FocalModulation):
    """Modulation that adds the modulator to the query (Table 10, additive)."""

    def modulate(self, query: Tensor, modulator: Tensor) -> Tensor:
        """Combine query and modulator, both (N, H, W, C)."""
        return query + modulator


class NoGlobalModulation(FocalModulation):
    """Modulation without the global context (Table 11)."""

    fewest_levels = 1

    def aggregate(self, levels: list[Tensor], gates: Tensor) -> Tensor:
        """Sum z^1 to z^L, gated."""
        return super().aggregate(levels[:-1], gates)


class TopOnlyModulation(FocalModulation):
    """Modulation by level L alone (Table 11)."""

    fewest_levels = 1

    def aggregate(self, levels: list[Tensor], gates: Tensor) -> Tensor:
        """Gate z^L."""
        return super().aggregate(levels[-2:-1], gates[:, -2:])


class NoGatingModulation(FocalModulation):
    """Modulation with all gates equal to 1 (Table 11)."""

    def gather(self, context: Tensor, gates: Tensor) -> Tensor:
        """Gather the context of every token with equal weights."""
        return super().gather(context, torch.ones_like(gates))


class PoolingModulation(FocalModulation):
    """Modulation with average pooling in place of convolutions and activations (Table 10)."""

    def __init__(
        self, dim: int, focal_level: int, focal_window: int, focal_factor: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(dim, focal_level, focal_window, focal_factor, **kwargs)
        self.act = nn.Identity()
        self.focal_layers = nn.ModuleList(
            nn.AvgPool2d(k, 1, k // 2, count_include_pad=False)
            for k in (focal_window + focal_factor * level for level in range(focal_level))
        )


class ConvNetModulation(FocalModulation):
    """Depth-wise ConvNet, y = q(GELU(h(z^L))) (Table 10).

    Query and context have linear layers of their own, ``q`` and ``f``. In a checkpoint of another
    modulation they are the first and the second C rows of ``f``. ``keep_maps`` has no effect.
    """

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        self.q, self.f = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.normalize_modulator = False  # nothing is summed

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        context = project(self.f, x).permute(0, 3, 1, 2)
        levels = [context, *self.contextualize(context)]
        out = project(self.q, self.act(project_map(self.h, levels[-2])))
        return self.proj_drop(project(self.proj, self.ln(out)))

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Take query and context from the joint projection of another modulation."""
        super().fit_state_dict(state_dict, prefix)
        for name in ('weight', 'bias'):
            joint = state_dict.get(f'{prefix}f.{name}')
            if joint is not None and len(joint) > 2 * self.dim:
                state_dict[f'{prefix}q.{name}'] = joint[: self.dim]
                state_dict[f'{prefix}f.{name}'] = joint[self.dim : 2 * self.dim]


class AttentionInPlace(FocalModulation):
    """Base of the self-attention of Table 10, where f_z, q and h of Eq. 6 are the identity.

    ``q`` projects queries, ``f`` keys and values. The paper does not give the number of heads. They
    have 32 channels here, as in Swin, or the largest power of 2 that divides C if that is less.
    Checkpoints of other modulations do not fit. ``keep_maps`` has no effect.
    """

    def __init__(self, dim: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(dim, *args, **kwargs)
        del self.h
        self.num_heads = dim // gcd(dim, 32)
        self.q, self.f = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.normalize_modulator = False  # nothing is summed

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        query = project(self.q, x)[:, :, :, None]
        key, value = self.keys_and_values(x)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(3, 4) for part in (query, key, value)
        )
        out = attention(query, key, value, self.mask(x)).flatten(3)
        return self.proj_drop(project(self.proj, self.ln(out)))

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of each token, shape (N, H, W, keys, C), of a map (N, H, W, C)."""
        raise NotImplementedError

    def mask(self, x: Tensor) -> Tensor:
        """Return what is added to the scores of a map (N, H, W, C), broadcast to (N, H, W, heads,
        1, keys).
        """
        return x.new_zeros(())

    def summarize(self, x: Tensor) -> Tensor:
        """Return each token and its contexts z^1 to z^(L+1), (N, H, W, C) -> (N, H, W, L + 2, C).

        The global context is repeated at each position.
        """
        x = x.permute(0, 3, 1, 2)
        levels = [level.expand_as(x) for level in (x, *self.contextualize(x))]
        return torch.stack(levels, -1).permute(0, 2, 3, 4, 1)


class MultiScaleAttention(AttentionInPlace):
    """Attention of each token to itself and its contexts (Table 10, multi-scale self-attention).

    Keys and values are projected before they are summarized, both by the same kernels, as the
    paper's FLOPs and parameters say.
    """

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project, then summarize."""
        key, value = project(self.f, x).chunk(2, -1)
        return self.summarize(key), self.summarize(value)


class LateMultiScaleAttention(AttentionInPlace):
    """Attention of each token to itself and its contexts (Table 10, multi-scale self-attention, QKV
    later): keys and values are projected after the tokens are summarized.
    """

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Summarize, then project."""
        key, value = project(self.f, self.summarize(x)).chunk(2, -1)
        return key, value


class SlidingWindowAttention(AttentionInPlace):
    """Attention of each token to the window round it (Table 10, sliding-window self-attention).

    The window has the size of the last level's kernel: 7x7 in FocalNet-T (LRF). Tokens outside of
    the map are masked. Time and memory grow with the tokens times the window.
    """

    fewest_levels = 1

    def __init__(
        self, dim: int, focal_level: int, focal_window: int, focal_factor: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(dim, focal_level, focal_window, focal_factor, **kwargs)
        self.focal_layers = nn.ModuleList()
        del self.act
        self.side = focal_window + focal_factor * (focal_level - 1)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project, then cut out windows."""
        key, value = self.windows(project(self.f, x)).chunk(2, -1)
        return key, value

    def mask(self, x: Tensor) -> Tensor:
        """Exclude what lies outside of the map."""
        inside = self.windows(x.new_ones(1, *x.shape[1:3], 1)).transpose(3, 4)[:, :, :, None]
        return torch.zeros_like(inside).masked_fill(inside == 0, float('-inf'))

    def windows(self, x: Tensor) -> Tensor:
        """Cut out, for each token, the window round it: (N, H, W, C) -> (N, H, W, side^2, C)."""
        size, half = x.shape[1:3], self.side // 2
        out = F.unfold(x.permute(0, 3, 1, 2), self.side, padding=half)
        return out.unflatten(2, size).unflatten(1, (-1, self.side**2)).permute(0, 3, 4, 2, 1)


# The names that `FocalNet(modulation=...)` takes. A checkpoint of 'focal' loads into all without
# attention.
MODULATIONS: dict[str, type[FocalModulation]] = dict(
    focal=FocalModulation,
    additive=AdditiveModulation,
    no_global=NoGlobalModulation,
    top_only=TopOnlyModulation,
    no_gating=NoGatingModulation,
    pooling=PoolingModulation,
    convnet=ConvNetModulation,
    multi_scale_attention=MultiScaleAttention,
    multi_scale_attention_qkv_later=LateMultiScaleAttention,
    sliding_window=SlidingWindowAttention,
)
