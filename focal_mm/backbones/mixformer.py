"""MixFormer: Mixing Features across Windows and Dimensions (Chen et al., CVPR 2022,
arXiv:2204.02557).

Equations, sections and tables below are the paper's.
"""
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..weights.resize import CheckpointError, FittedModule, fit_kernel, fit_position_bias
from .layers import (Mlp, Stage, StagedBackbone, convolve_patches, fix_statistics, is_graph, lack,
                     per_stage, project, relative_index, resolve_arch)
from .window_attention import (MASKED, Plan, WindowAttention, attend, home_places, kept_parts,
                               roll, window_tokens, wrap)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in eval mode multiplies by, and what it adds then, a channel."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def fold_before(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Makes a convolution give what the norm after it would."""
    scale, shift = affine(norm)
    layer.weight.mul_(scale.view(-1, 1, 1, 1))
    layer.bias.mul_(scale).add_(shift)


@torch.no_grad()
def fold_after(norm: nn.BatchNorm2d, layer: nn.Linear | nn.Conv2d) -> None:
    """Makes a layer do what the norm of its last inputs would; a convolution must not pad."""
    scale, shift = affine(norm)
    weight = layer.weight[:, -len(scale):].view(len(layer.weight), len(scale), -1)
    layer.bias.add_(weight.sum(-1) @ shift)
    weight.mul_(scale[:, None])


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm of globally pooled maps. A lone image has no variance over the batch: in training
    the running statistics stand in for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 1, 1) -> (N, C, 1, 1)."""
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                                eps=self.eps)
        return super().forward(x)


def window_plan(height: int, width: int, window_size: int, shift: tuple[int, int] | None,
                device: torch.device) -> Plan:
    """The tokens of a window attend to each other.

    Args:
        height (int): That of the map, a multiple of the window.
        width (int): Likewise.
        window_size (int): Side of a window.
        shift (tuple[int, int], optional): By how many tokens windows are shifted down and to the
            right. None: they are not.
        device (torch.device): That of the result.
    """
    own = window_tokens(height // window_size, width // window_size, window_size, device)
    if shift is None:
        return Plan(own, own)
    y, x = own // width, own - own // width * width
    # What the shift brought from the opposite side is no neighbour in its window.
    area = 2 * (y >= height - shift[0]) + 1 * (x >= width - shift[1])
    mask = torch.where(area[:, None, :, None] != area[:, None, None], MASKED, 0.)
    own = wrap(y + shift[0], height) * width + wrap(x + shift[1], width)
    return Plan(own, own, None, mask)


class MixingAttention(FittedModule):
    """Window attention and depth-wise convolution side by side, MIX of Eq. 1 (Figures 1 and 2).

    The attention has half of the channels, and so has the convolution once it is projected. The
    pooled convolution scales the channels of the values (channel interaction), the attention
    scales the places of the convolution (spatial interaction).

    Args:
        dim (int): Channels C.
        num_heads (int): Attention heads; a divisor of C / 2 (of C where not ``parallel``).
        window_size (int): Side of an attention window. Default: 7.
        dwconv_kernel_size (int): Kernel size of the convolution, odd (Table 8). Default: 3.
        qkv_bias (bool): Bias in the projection to query, key and value. Default: True.
        shift_size (int): By how much the attention windows are shifted, as in Swin (Table 9). The
            convolution needs no shift. Default: 0.
        parallel (bool): False: the first row of Table 7, attention of all channels and the
            convolution after it. It is a reading, since the paper does not spell it out; it costs
            what the parallel design costs to a tenth. Default: True.
        channel_interaction (bool): Default: True.
        spatial_interaction (bool): Default: True.
        attn_drop (float): Dropout rate of the attention weights. Default: 0.
        drop (float): Dropout rate of the output. Default: 0.
        act_cfg (dict): Activations. Default: GELU.
        norm_cfg (dict): Norms over channels; those over the batch are BN. Default: LN.

    Raises:
        ValueError: If the channels are odd, too few or not divided by the heads, if the kernel is
            even, or if there are interactions without two branches.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 7,
                 dwconv_kernel_size: int = 3, qkv_bias: bool = True, shift_size: int = 0,
                 parallel: bool = True, channel_interaction: bool = True,
                 spatial_interaction: bool = True, attn_drop: float = 0., drop: float = 0.,
                 act_cfg: dict = dict(type='GELU'), norm_cfg: dict = dict(type='LN')) -> None:
        super().__init__()
        attn_dim = dim // 2 if parallel else dim
        if dim < 16 or dim % 2:
            raise ValueError(f'mixing block of {dim} channels (embed_dims): give 16 or more, and '
                             'an even number')
        if attn_dim % num_heads:
            raise ValueError(f'mixing block of {dim} channels: num_heads={num_heads} does not '
                             f'divide the {attn_dim} of the attention; give a divisor')
        if window_size < 1:
            raise ValueError(f'mixing block: window_size={window_size}; give 1 or more (7)')
        if dwconv_kernel_size < 1 or dwconv_kernel_size % 2 == 0:
            raise ValueError(f'mixing block: dwconv_kernel_size={dwconv_kernel_size}; '
                             'give an odd one, 1, 3 or 5')
        if not parallel and (channel_interaction or spatial_interaction):
            raise ValueError('mixing block: the interactions are between parallel branches; with '
                             'parallel=False give channel_interaction=False and '
                             'spatial_interaction=False')
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.parallel = parallel

        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1)**2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=.02)
        self.register_buffer('relative_position_index', relative_index(window_size, window_size),
                             persistent=False)
        self.dwconv3x3 = nn.Sequential(
            nn.Conv2d(dim, dim, dwconv_kernel_size, padding=dwconv_kernel_size // 2, groups=dim),
            nn.BatchNorm2d(dim), build_activation_layer(act_cfg))
        if parallel:
            self.proj_attn = nn.Linear(dim, attn_dim)
            self.proj_attn_norm = build_norm_layer(norm_cfg, attn_dim)[1]
            self.proj_cnn = nn.Linear(dim, dim)
            self.proj_cnn_norm = build_norm_layer(norm_cfg, dim)[1]
            self.projection = nn.Conv2d(dim, attn_dim, 1)
            self.conv_norm = nn.BatchNorm2d(attn_dim)
        self.channel_interaction = self.spatial_interaction = None
        if channel_interaction:
            self.channel_interaction = nn.Sequential(
                nn.Conv2d(dim, dim // 8, 1), PooledBatchNorm(dim // 8),
                build_activation_layer(act_cfg), nn.Conv2d(dim // 8, attn_dim, 1))
        if spatial_interaction:
            self.spatial_interaction = nn.Sequential(
                nn.Conv2d(attn_dim, dim // 16, 1), nn.BatchNorm2d(dim // 16),
                build_activation_layer(act_cfg), nn.Conv2d(dim // 16, 1, 1))
        self.qkv = nn.Linear(attn_dim, 3 * attn_dim, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.attn_norm = build_norm_layer(norm_cfg, attn_dim)[1]
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C), H and W multiples of the window -> (N, H, W, C)."""
        if not self.parallel:
            attn = self.attn_norm(self.attend(x)).permute(0, 3, 1, 2)
            return self.proj_drop(project(self.proj, self.dwconv3x3(attn).permute(0, 2, 3, 1)))

        conv = self.proj_cnn_norm(project(self.proj_cnn, x))
        conv = self.dwconv3x3(conv.permute(0, 3, 1, 2))
        attn = self.attend(self.proj_attn_norm(project(self.proj_attn, x)))
        if self.channel_interaction is not None:
            # Attention is linear in its values, so that the output is scaled in their place.
            scale = self.channel_interaction(conv.mean((2, 3), keepdim=True)).sigmoid()
            attn = attn * scale.permute(0, 2, 3, 1)
        conv = convolve_patches(self.projection, conv)
        if self.spatial_interaction is not None:
            reduce, norm, act, expand = self.spatial_interaction
            gate = act(norm(convolve_patches(reduce, attn.permute(0, 3, 1, 2))))
            conv = conv * convolve_patches(expand, gate).sigmoid()
        conv = self.conv_norm(conv).permute(0, 2, 3, 1)
        return self.proj_drop(project(self.proj, torch.cat((self.attn_norm(attn), conv), -1)))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention within each window: (N, H, W, C) -> (N, H, W, C)."""
        height, width = x.shape[1:3]
        size, heads = self.window_size, self.num_heads
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        dropout = self.attn_drop if self.training else 0.
        # Along a side of one window there is nothing that a shift could connect.
        shift = tuple(self.shift_size * (1 - size // side) for side in (height, width))
        sizes = height, width, size, shift if self.shift_size else None, x.device
        qkv = project(self.qkv, x).flatten(1, 2)
        if dropout or is_graph():
            home = home_places(height, width, height, width, size, shift, x.device)
            return attend(qkv, window_plan(*sizes), bias[None], home, heads, dropout)
        parts, _ = kept_parts(heads, window_plan, *sizes)
        return WindowAttention.apply(qkv, height * width, bias, parts).view(x.shape)

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        for branch in (self.dwconv3x3, self.channel_interaction, self.spatial_interaction):
            if branch is not None:
                fold_before(*branch[:2])
                branch[1] = nn.Identity()
        if self.parallel:
            # Between the projection and its norm there may be the spatial interaction.
            fold_after(self.conv_norm, self.proj)
            self.conv_norm = nn.Identity()

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Interpolates the position bias of another window size, zero-pads or crops another
        depth-wise kernel.

        Raises:
            CheckpointError: If the kernel in the checkpoint is even, or the position bias is not
                that of a square window.
        """
        state_dict.pop(f'{prefix}relative_position_index', None)  # follows from the window size
        key, ours = f'{prefix}relative_position_bias_table', len(self.relative_position_bias_table)
        if key in state_dict and len(state_dict[key]) != ours:
            theirs = state_dict[key]
            state_dict[key] = fit_position_bias(theirs.t(), ours).t()
            self.changes['window bias table', f'interpolated {len(theirs)} -> {ours} offsets'] += 1

        key, ours = f'{prefix}dwconv3x3.0.weight', self.dwconv3x3[0].kernel_size[0]
        if key in state_dict and state_dict[key].shape[-1] != ours:
            theirs = state_dict[key].shape[-1]
            if theirs % 2 == 0:
                raise CheckpointError(f'{key} is a {theirs}x{theirs} kernel; those of MixFormer '
                                      'are odd, so this is no checkpoint of it')
            what = 'zero-padded' if theirs < ours else 'cropped'
            self.changes['kernel', f'{what} {theirs}x{theirs} -> {ours}x{ours}'] += 1
            state_dict[key] = fit_kernel(state_dict[key], ours)


class ConvMlp(Mlp):
    """MLP with a 3x3 depth-wise convolution between its linear layers (Table 9)."""

    def __init__(self, dim: int, hidden_dim: int, act_cfg: dict = dict(type='GELU'),
                 drop: float = 0.) -> None:
        super().__init__(dim, hidden_dim, act_cfg, drop)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(self.act(x))))


class MixingBlock(BaseModule):
    """Mixing block, section 3.1: MIX (Eq. 1) and an FFN (Eq. 2), each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        attn (dict): Arguments of :class:`MixingAttention` but ``dim``.
        mlp_ratio (float): Hidden channels of the FFN, as a multiple of C. Default: 4.
        mlp_dwconv (bool): Depth-wise convolution in the FFN (Table 9). Default: False.
        drop (float): Dropout rate in the FFN. Default: 0.
        drop_path (float): Rate of stochastic depth. Default: 0.
        act_cfg (dict): Activation of the FFN. Default: GELU.
        norm_cfg (dict): Norms. Default: LN.
    """

    def __init__(self, dim: int, attn: dict, mlp_ratio: float = 4., mlp_dwconv: bool = False,
                 drop: float = 0., drop_path: float = 0., act_cfg: dict = dict(type='GELU'),
                 norm_cfg: dict = dict(type='LN')) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.attn = MixingAttention(dim, **attn)
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = (ConvMlp if mlp_dwconv else Mlp)(dim, int(dim * mlp_ratio), act_cfg, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        height, width = x.shape[1:3]
        size = self.attn.window_size
        # Zeros after the norm make whole windows. As in the official code they are tokens like
        # any other: attended to, convolved and pooled.
        out = F.pad(self.norm1(x), (0, 0, 0, lack(width, size), 0, lack(height, size)))
        out = self.attn(out)
        out = roll(out, (0, 0), (height, width)) if is_graph() else out[:, :height, :width]
        x = x + self.drop_path(out)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvStem(BaseModule):
    """Convolution stem, section 3.2: three 3x3 convolutions, then patches are embedded.

    The map is zero-padded at the right and at the bottom to a multiple of the patch.

    Args:
        in_channels (int): Channels in.
        embed_dims (int): Channels out.
        patch_size (int): Stride of the stem, in pixels, even. Default: 4.
        act_cfg (dict): Activations. Default: GELU.
        norm_cfg (dict): Norm of the patches; those of the convolutions are BN. Default: LN.

    Raises:
        ValueError: If the patch size is odd.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int = 4,
                 act_cfg: dict = dict(type='GELU'), norm_cfg: dict = dict(type='LN')) -> None:
        super().__init__()
        if patch_size < 2 or patch_size % 2:
            raise ValueError(f'MixFormer: patch_size={patch_size}; give an even one, since the '
                             'last step of the stem halves the map')
        self.patch_size = patch_size
        dim = embed_dims // 2
        layers = []
        for channels, stride in ((in_channels, patch_size // 2), (dim, 1), (dim, 1)):
            layers += [nn.Conv2d(channels, dim, 3, stride, padding=1), nn.BatchNorm2d(dim),
                       build_activation_layer(act_cfg)]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(dim, embed_dims, 2, 2)
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / patch_size), ceil(W / patch_size), embed_dims)."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, lack(width, self.patch_size), 0, lack(height, self.patch_size)))
        # Channels last, 3 x 3 convolutions take half the time on a CPU.
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.norm(convolve_patches(self.proj, x).permute(0, 2, 3, 1))

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        for i in range(0, len(self.stem), 3):
            fold_before(*self.stem[i:i + 2])
            self.stem[i + 1] = nn.Identity()


class ConvMerging(nn.Module):
    """Step between two stages: BatchNorm and a 2x2 convolution of stride 2.

    Args:
        dim (int): Channels in.
        out_dim (int): Channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / 2), ceil(W / 2), C')."""
        # The official code takes even maps only. Odd ones are padded before the norm, as in Swin.
        x = F.pad(x, (0, lack(x.shape[3], 2), 0, lack(x.shape[2], 2)))
        return convolve_patches(self.reduction, self.norm(x)).permute(0, 2, 3, 1)

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        fold_after(self.norm, self.reduction)
        self.norm = nn.Identity()


def _arch(embed_dims: int, depths: tuple[int, ...], num_heads: tuple[int, ...],
          drop_path_rate: float) -> dict:
    return dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads,
                drop_path_rate=drop_path_rate)


@MODELS.register_module()
class MixFormer(StagedBackbone):
    """MixFormer, section 3.2.

    Parameters have the names of the official code, so that its checkpoints load as they are,
    Paddle's files included; position biases of another window size and depth-wise kernels of
    another size are fitted (:meth:`MixingAttention.fit_state_dict`).

    Args:
        arch (str or dict): ``'b0'`` to ``'b6'`` (Table 2 has B1 to B4), or the settings themselves
            (``embed_dims`` and ``depths`` at least). Default: ``'b1'``.
        embed_dims (int or Sequence[int], optional): Channels of the first stage, doubled from
            stage to stage; or those of each stage (Table 10), multiples of 2 and at least 16.
        depths (int or Sequence[int], optional): Blocks of each stage. This and the other sizes
            override the arch's; an int stands for equal stages.
        num_heads (int or Sequence[int], optional): Attention heads of each stage.
        window_size (int): Side of an attention window. Default: 7.
        dwconv_kernel_size (int): Kernel size of the depth-wise convolutions, odd (Table 8).
            Default: 3.
        qkv_bias (bool): Bias in the projection to query, key and value. Default: True.
        parallel (bool): False: the successive design, see :class:`MixingAttention` (Table 7).
            Default: True.
        channel_interaction (bool): From the convolution to the attention (Table 7). Default: True.
        spatial_interaction (bool): From the attention to the convolution (Table 7). Default: True.
        use_shift (bool): Shifts the windows of every second block by half (Table 9).
            Default: False.
        mlp_dwconv (bool): A 3x3 depth-wise convolution in the FFNs (Table 9). Default: False.
        in_channels (int): Channels of the image. Default: 3.
        patch_size (int): Stride of the stem in pixels, even. Default: 4.
        mlp_ratio (float): Hidden channels of the FFNs, as a multiple. Default: 4.
        drop_rate (float): Dropout rate. Default: 0.
        attn_drop_rate (float): Dropout rate of the attention weights. Default: 0.
        drop_path_rate (float, optional): Stochastic depth of the last block, from 0 at the first
            one on. Default: that of the arch.
        norm_cfg (dict): Norms over channels; those over the batch are BN. Default: LN, eps 1e-5.
        act_cfg (dict): Activations. Default: GELU.
        out_indices (Sequence[int], optional): Stages whose maps are returned. Default: all.
        out_norm (bool): Whether each map passes a norm of its own, ``norm{i}``. Default: True.
        frozen_stages (int): -1: none; 0: the stem; n: and the first n stages. Default: -1.
        norm_eval (bool): Keeps the statistics of BatchNorm fixed in training. Default: False.
        with_cp (bool): Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg (dict or list, optional): Initialisation. Default: linear layers from a normal
            distribution truncated at 2, std 0.02; convolutions by Kaiming's.

    Raises:
        ValueError: For an unknown arch, sizes that do not match the stages or each other, an even
            kernel, an odd patch, or interactions without two branches.
    """

    classifier = ('norm', 'last_proj', 'head')
    archs: dict[str, dict] = {
        'b0': _arch(24, (1, 2, 6, 6), (3, 6, 12, 24), 0.),
        'b1': _arch(32, (1, 2, 6, 6), (2, 4, 8, 16), 0.),
        'b2': _arch(32, (2, 2, 8, 8), (2, 4, 8, 16), 0.05),
        'b3': _arch(48, (2, 2, 8, 6), (3, 6, 12, 24), 0.1),
        'b4': _arch(64, (2, 2, 8, 8), (4, 8, 16, 32), 0.2),
        'b5': _arch(96, (1, 2, 8, 6), (6, 12, 24, 48), 0.3),
        'b6': _arch(96, (2, 4, 16, 12), (6, 12, 24, 48), 0.5),
    }

    def __init__(self,
                 arch: str | dict = 'b1',
                 embed_dims: int | Sequence[int] | None = None,
                 depths: int | Sequence[int] | None = None,
                 num_heads: int | Sequence[int] | None = None,
                 window_size: int = 7,
                 dwconv_kernel_size: int = 3,
                 qkv_bias: bool = True,
                 parallel: bool = True,
                 channel_interaction: bool = True,
                 spatial_interaction: bool = True,
                 use_shift: bool = False,
                 mlp_dwconv: bool = False,
                 in_channels: int = 3,
                 patch_size: int = 4,
                 mlp_ratio: float = 4.,
                 drop_rate: float = 0.,
                 attn_drop_rate: float = 0.,
                 drop_path_rate: float | None = None,
                 norm_cfg: dict = dict(type='LN', eps=1e-5),
                 act_cfg: dict = dict(type='GELU'),
                 out_indices: Sequence[int] | None = None,
                 out_norm: bool = True,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list | None = [
                     dict(type='TruncNormal', layer='Linear', std=0.02),
                     dict(type='Kaiming', layer='Conv2d', mode='fan_in')]) -> None:
        sizes = resolve_arch('MixFormer', self.archs, arch, embed_dims=embed_dims, depths=depths,
                             num_heads=num_heads, drop_path_rate=drop_path_rate)
        depths, dims = sizes['depths'], sizes['embed_dims']
        count = len(depths)
        if isinstance(dims, int):
            dims = [dims * 2**i for i in range(count)]
        dims = per_stage('MixFormer', 'embed_dims', dims, count)
        heads = per_stage('MixFormer', 'num_heads', sizes['num_heads'], count)
        drop_paths = iter(np.linspace(0, sizes['drop_path_rate'], sum(depths)).tolist())

        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                MixingBlock(
                    dim,
                    attn=dict(
                        num_heads=heads[i], window_size=window_size,
                        dwconv_kernel_size=dwconv_kernel_size, qkv_bias=qkv_bias,
                        shift_size=window_size // 2 if use_shift and j % 2 else 0,
                        parallel=parallel, channel_interaction=channel_interaction,
                        spatial_interaction=spatial_interaction, attn_drop=attn_drop_rate,
                        drop=drop_rate, act_cfg=act_cfg, norm_cfg=norm_cfg),
                    mlp_ratio=mlp_ratio, mlp_dwconv=mlp_dwconv, drop=drop_rate,
                    drop_path=next(drop_paths), act_cfg=act_cfg, norm_cfg=norm_cfg)
                for j in range(depths[i])
            ]
            down = ConvMerging(dim, dims[i + 1]) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(ConvStem(in_channels, dims[0], patch_size, act_cfg, norm_cfg), stages,
                         dims, drop_rate, out_indices, out_norm, norm_cfg, frozen_stages, init_cfg)
        self.norm_eval = norm_eval

    def train(self, mode: bool = True) -> 'MixFormer':
        """As :meth:`torch.nn.Module.train`; what is frozen stays in eval mode, and with
        ``norm_eval`` every BatchNorm."""
        super().train(mode)
        if self.norm_eval:
            fix_statistics(self)
        return self

    def fold_norms(self) -> 'MixFormer':
        """For inference: every BatchNorm, with its running statistics, becomes part of the layer
        beside it. The maps stay the same to 1e-5; less is computed and stored.

        Checkpoints come first, since a folded network has other parameters, and is not to be
        trained. A second call changes nothing.

        Returns:
            MixFormer: Itself.

        Raises:
            RuntimeError: In training mode, where the statistics are the batch's.
        """
        if self.training:
            raise RuntimeError('MixFormer.fold_norms: the network is in training mode; '
                               'call eval() first')
        if any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            self.patch_embed.fold_norms()
            for stage in self.layers:
                for block in stage.blocks:
                    block.attn.fold_norms()
                if stage.downsample is not None:
                    stage.downsample.fold_norms()
        return self
