"""Window attention mixed with depth-wise convolution, MIX of MixFormer (arXiv:2204.02557)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.cnn import build_activation_layer
from mmengine.dist import get_world_size
from mmengine.model.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..kernels.dispatch import can_fuse, fused_module, fused_step, is_graph
from ..kernels.inference import apply_folded
from ..kernels.linear import PatchConv2d, project
from ..kernels.map_conv import MapConv2d
from ..kernels.padding import pad_by_token
from ..kernels.window_attention import window_attention
from ..kernels.window_plans import (
    Windows,
    crop,
    pad_to_multiple,
    padding_to_multiple,
    relative_index,
)
from ..weights.loading import FittedModule
from ..weights.resize import fit_position_bias
from .base import build_norm
from .folding import fold_after, fold_before


@fused_module
class ChannelInteraction(nn.Sequential):
    """Channel interaction (Figure 2): 1x1 convolution, BatchNorm, activation, 1x1 convolution of
    the globally pooled map.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) -> (N, C', 1, 1)."""
        for layer in self:
            # A single pooled image has no variance over the batch: use the running statistics.
            alone = isinstance(layer, _BatchNorm) and not (
                isinstance(layer, nn.SyncBatchNorm) and get_world_size() > 1
            )
            if alone and layer.training and len(x) == 1:
                layer.eval()
                x = layer(x)
                layer.train()
            else:
                x = layer(x)
        return x


class WindowAttentionBlock(FittedModule):
    """Base of the parallel and the successive designs: window attention, a depth-wise convolution
    and the output projection.

    Args:
        dim (int): Channels C.
        attn_dim (int): Channels of the attention, a multiple of ``num_heads``.
        num_heads (int): Attention heads.
        window_size (int): Side of an attention window. Default: 7.
        dwconv_kernel_size (int): Kernel size of the convolution, odd (Table 8). Default: 3.
        qkv_bias (bool): Bias in the projection to query, key and value. Default: True.
        shift_size (int): By how much the attention windows are shifted, as in Swin (Table 9). The
            convolution needs no shift. Default: 0.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        drop (float): Dropout rate of the output. Default: 0.
        act_cfg (dict): Activation. Default: GELU.
        norm_cfg (dict): Norms over channels; those over the batch are BN. Default: LN.

    Attributes:
        enter (Callable): Projects tokens, (N, H, W, C), to maps for ``mix``: what is convolved,
            where that is apart from the attention; and queries, keys and values.
        mix (Callable): Attends and convolves: maps of whole windows -> maps of the same size.
        leave (Callable): Crops these maps to a size, its first argument, and projects their tokens
            to (N, H, W, C).
        keep_maps (bool): Whether each forward stores on the module what its attention weights
            follow from, as :class:`.focal_attention.MultiLevelAttention` does, and its
            interactions, see :class:`MixingAttention`. Default: False.

    Raises:
        ValueError: If the channels are odd, too few or not divided by the heads, or the kernel is
            even.
    """

    enter: Callable[[Tensor], tuple[Tensor, ...]]
    mix: Callable[..., tuple[Tensor, ...]]
    leave: Callable[..., Tensor]

    def __init__(
        self,
        dim: int,
        attn_dim: int,
        num_heads: int,
        window_size: int = 7,
        dwconv_kernel_size: int = 3,
        qkv_bias: bool = True,
        shift_size: int = 0,
        attn_drop: float = 0.0,
        drop: float = 0.0,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__()
        if dim < 16 or dim % 2:
            raise ValueError(
                f'mixing block of {dim} channels (embed_dims): give 16 or more, and an even number'
            )
        if num_heads < 1 or attn_dim % num_heads:
            raise ValueError(
                f'mixing block of {dim} channels: num_heads={num_heads} does not '
                f'divide the {attn_dim} of the attention; give a divisor'
            )
        if window_size < 1:
            raise ValueError(f'mixing block: window_size={window_size}; give 1 or more (7)')
        if dwconv_kernel_size < 1 or dwconv_kernel_size % 2 == 0:
            raise ValueError(
                f'mixing block: dwconv_kernel_size={dwconv_kernel_size}; give an odd one, 1, 3 or 5'
            )
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.attn_drop = attn_drop
        self.keep_maps = False

        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(attn_dim, 3 * attn_dim, bias=qkv_bias)
        self.attn_norm = build_norm(norm_cfg, attn_dim)
        self.dwconv3x3 = nn.Sequential(
            MapConv2d(dim, dim, dwconv_kernel_size, padding=dwconv_kernel_size // 2, groups=dim),
            nn.BatchNorm2d(dim),
            build_activation_layer(act_cfg),
        )
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        return self.leave(x.shape[1:3], *self.mix(*self.enter_padded(x)))

    def enter_padded(self, x: Tensor) -> tuple[Tensor, ...]:
        """Apply :meth:`enter` to a map that is zero-padded to whole windows.

        As in the official code, the zeros are tokens like any other: attended to, convolved and
        pooled. All have the same projections, which are computed once: for windows of 7, a map of
        16 x 16 gets 185 of them beside its 256 tokens.
        """
        multiple = self.window_size
        if not can_fuse((self, 'enter'), *self.token_layers()):
            return self.enter(pad_to_multiple(x, multiple))
        if is_graph():
            # A graph always pads, to avoid a branch on the size. The zeros are one more row of the
            # map there: as a map of their own they were a quarter of all operations to compile.
            rows = torch.cat((x.flatten(0, 2), x.new_zeros(1, x.shape[-1])))
            parts = (
                map_[0, 0].split([rows.shape[0] - 1, 1]) for map_ in self.enter(rows[None, None])
            )
            return tuple(
                pad_by_token(inside.unflatten(0, x.shape[:3]), token[None, None], multiple)
                for inside, token in parts
            )
        if not any(padding_to_multiple(side, multiple) for side in x.shape[1:3]):
            return self.enter(x)
        tokens = self.enter(x.new_zeros(1, 1, 1, x.shape[-1]))
        return tuple(
            pad_by_token(map_, token, multiple)
            for map_, token in zip(self.enter(x), tokens, strict=True)
        )

    def token_layers(self) -> list[tuple[nn.Module, type]]:
        """Return the layers that :meth:`enter` applies, with the classes that act on tokens."""
        return [(self.qkv, nn.Linear)]

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend within each window of a map of whole windows: (N, H, W, 3 * C) -> (N, H, W, C)."""
        height, width = qkv.shape[1:3]
        size, shift = self.window_size, None
        if self.shift_size:
            # Along a side of one window there is nothing that a shift could connect.
            shift = (self.shift_size * (1 - size // height), self.shift_size * (1 - size // width))
        windows = Windows(height, width, size, shift)
        dropout = self.attn_drop if self.training else 0.0
        qkv = qkv.flatten(1, 2)
        if self.keep_maps:
            self.tokens, self.token_windows = qkv.detach(), windows
        bias = self.bias_of(windows, qkv.dtype)
        return window_attention(qkv, windows, bias, self.num_heads, dropout)

    def bias_of(self, windows: Windows, dtype: torch.dtype) -> Tensor:
        """Return the bias of each query and key, which is the same on every map."""
        return self.position_bias()

    def position_bias(self) -> Tensor:
        """Return the bias of each query and key of a window: shape (num_heads, window_size^2,
        window_size^2).
        """
        table = self.relative_position_bias_table
        index = relative_index(self.window_size, self.window_size, table.device)
        return table[index].permute(2, 0, 1)

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        fold_before(self.dwconv3x3)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Interpolate the position bias of another window size, zero-pad or crop another
        depth-wise kernel.

        Raises:
            CheckpointError: If the kernel in the checkpoint is even.
            ValueError: If the position bias does not belong to a square window.
        """
        state_dict.pop(f'{prefix}relative_position_index', None)  # follows from the window size
        key, ours = f'{prefix}relative_position_bias_table', len(self.relative_position_bias_table)
        if key in state_dict and len(state_dict[key]) != ours:
            theirs = state_dict[key]
            state_dict[key] = fit_position_bias(theirs.t(), ours).t().contiguous()
            self.changes['window bias table', f'interpolated {len(theirs)} -> {ours} offsets'] += 1

        size = self.dwconv3x3.get_parameter('0.weight').shape[-1]
        self.fit_odd_kernel(state_dict, f'{prefix}dwconv3x3.0.weight', size)


@fused_module
class MixingAttention(WindowAttentionBlock):
    """Window attention and depth-wise convolution side by side, MIX of Eq. 1 (Figures 1 and 2).

    The attention has half of the channels, and so does the convolution after its projection. The
    pooled convolution scales the channels of the values (channel interaction); the attention
    scales the positions of the convolution (spatial interaction).

    With ``keep_maps``, each forward also stores, detached, the scales: ``channel_weights``, shape
    (N, C / 2), and ``spatial_weights``, (N, H, W).

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; a divisor of C / 2.
        channel_interaction (bool): From the convolution to the attention (Table 7). Default: True.
        spatial_interaction (bool): From the attention to the convolution (Table 7). Default: True.
        act_cfg (dict): Activations. Default: GELU.
        norm_cfg (dict): Norms over channels; those over the batch are BN. Default: LN.
        kwargs: Further arguments of :class:`WindowAttentionBlock`.

    Raises:
        ValueError: As :class:`WindowAttentionBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        channel_interaction: bool = True,
        spatial_interaction: bool = True,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
        **kwargs: Any,
    ) -> None:
        half = dim // 2
        super().__init__(dim, half, num_heads, act_cfg=act_cfg, norm_cfg=norm_cfg, **kwargs)
        self.proj_attn = nn.Linear(dim, half)
        self.proj_attn_norm = build_norm(norm_cfg, half)
        self.proj_cnn = nn.Linear(dim, dim)
        self.proj_cnn_norm = build_norm(norm_cfg, dim)
        # The norm acts after the spatial interaction. Registered before the projection, so that
        # mmcv.cnn.fuse_conv_bn does not fuse the two.
        self.conv_norm: nn.Module = nn.BatchNorm2d(half)
        self.projection = PatchConv2d(dim, half, 1)
        self.channel_interaction = self.spatial_interaction = None
        if channel_interaction:
            self.channel_interaction = ChannelInteraction(
                PatchConv2d(dim, dim // 8, 1),
                nn.BatchNorm2d(dim // 8),
                build_activation_layer(act_cfg),
                PatchConv2d(dim // 8, half, 1),
            )
        if spatial_interaction:
            self.spatial_interaction = nn.Sequential(
                PatchConv2d(half, dim // 16, 1),
                nn.BatchNorm2d(dim // 16),
                build_activation_layer(act_cfg),
                PatchConv2d(dim // 16, 1, 1),
            )

    @fused_step
    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project tokens (N, H, W, C) to what is convolved, (N, H, W, C), and to queries, keys and
        values, (N, H, W, 3 * C / 2).
        """
        conv = self.proj_cnn_norm(project(self.proj_cnn, x))
        return conv, project(self.qkv, self.proj_attn_norm(project(self.proj_attn, x)))

    def token_layers(self) -> list[tuple[nn.Module, type]]:
        """Return the layers that :meth:`enter` applies, with the classes that act on tokens."""
        norms, layers = (self.proj_cnn_norm, self.proj_attn_norm), (self.proj_cnn, self.proj_attn)
        return [
            *super().token_layers(),
            *((norm, nn.LayerNorm) for norm in norms),
            *((layer, nn.Linear) for layer in layers),
        ]

    @fused_step
    def mix(self, conv: Tensor, qkv: Tensor) -> tuple[Tensor, ...]:
        """Attend, convolve, and weigh the channels.

        Args:
            conv (Tensor): Shape (N, H, W, C).
            qkv (Tensor): Shape (N, H, W, 3 * C / 2).

        Returns:
            tuple[Tensor, ...]: What was attended to, shape (N, H, W, C / 2), and what was
            convolved, (N, H, W, C); with channel interaction also the scales of the channels of the
            former, (N, H, W, C / 2), which are the same everywhere.
        """
        conv = apply_folded(self.dwconv3x3, conv.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attn = self.attend(qkv)
        if self.channel_interaction is None:
            return attn, conv
        pooled = conv.mean((1, 2), keepdim=True).permute(0, 3, 1, 2)
        scale = self.channel_interaction(pooled).sigmoid().permute(0, 2, 3, 1)
        if self.keep_maps:
            self.channel_weights = scale.flatten(1).detach()
        return attn, conv, scale.expand_as(attn)

    @fused_step
    def leave(
        self, size: Sequence[int], attn: Tensor, conv: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        """Weigh the positions, crop the maps of :meth:`mix`, and project their tokens.

        Args:
            size (Sequence[int]): Height and width of the result.
            attn (Tensor): Shape (N, H, W, C / 2).
            conv (Tensor): Shape (N, H, W, C).
            scale (Tensor, optional): Shape (N, H, W, C / 2).

        Returns:
            Tensor: Shape (N, height, width, C).
        """
        if scale is not None:
            # Attention is linear in its values, so scaling the output is the same.
            attn = attn * scale
        conv = self.projection(conv.permute(0, 3, 1, 2))
        if self.spatial_interaction is not None:
            weights = apply_folded(self.spatial_interaction, attn.permute(0, 3, 1, 2)).sigmoid()
            conv = conv * weights
            if self.keep_maps:
                self.spatial_weights = weights[:, 0].detach()
        # In training mode, norms over the batch count the padding, too: it is cropped after them.
        conv = self.conv_norm(conv).permute(0, 2, 3, 1)
        attn, conv = (crop(x, size) for x in (attn, conv))
        return self.proj_drop(project(self.proj, torch.cat((self.attn_norm(attn), conv), -1)))

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        super().fold_norms()
        for branch in (self.channel_interaction, self.spatial_interaction):
            if branch is not None:
                fold_before(branch)
        # Between the projection and its norm there may be the spatial interaction.
        if isinstance(self.conv_norm, _BatchNorm):
            fold_after(self.conv_norm, self.proj)
            self.conv_norm = nn.Identity()


@fused_module
class SuccessiveAttention(WindowAttentionBlock):
    """Attention of all channels and the depth-wise convolution after it, the first row of Table 7.

    The paper does not give its details. Built this way, its cost is within a tenth of the parallel
    design.

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; a divisor of C.
        channel_interaction (bool): Must be False; there are no parallel branches to interact.
        spatial_interaction (bool): Must be False, for the same reason.
        kwargs: Further arguments of :class:`WindowAttentionBlock`.

    Raises:
        ValueError: If interactions are asked for, or as :class:`WindowAttentionBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        channel_interaction: bool = False,
        spatial_interaction: bool = False,
        **kwargs: Any,
    ) -> None:
        if channel_interaction or spatial_interaction:
            raise ValueError(
                'mixing block: the interactions are between parallel branches; with parallel=False '
                'give channel_interaction=False and spatial_interaction=False'
            )
        super().__init__(dim, dim, num_heads, **kwargs)

    @fused_step
    def enter(self, x: Tensor) -> tuple[Tensor]:
        """Project tokens to queries, keys and values: (N, H, W, C) -> (N, H, W, 3 * C)."""
        return (project(self.qkv, x),)

    @fused_step
    def mix(self, qkv: Tensor) -> tuple[Tensor]:
        """Attend, then convolve: (N, H, W, 3 * C) -> (N, H, W, C)."""
        attn = self.attn_norm(self.attend(qkv)).permute(0, 3, 1, 2)
        return (apply_folded(self.dwconv3x3, attn).permute(0, 2, 3, 1),)

    @fused_step
    def leave(self, size: Sequence[int], x: Tensor) -> Tensor:
        """Crop a map to a size, and project its tokens: (N, H, W, C) -> (N, height, width, C)."""
        return self.proj_drop(project(self.proj, crop(x, size)))
