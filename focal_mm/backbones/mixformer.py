"""MixFormer: Mixing Features across Windows and Dimensions (Chen et al., CVPR 2022,
arXiv:2204.02557).

Equations, sections and tables below are the paper's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_activation_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..kernels.dispatch import fused_module, fused_step
from ..kernels.inference import apply_folded, by_bands, can_infer, is_folded
from ..kernels.linear import PatchConv2d
from ..kernels.map_conv import MapConv2d
from ..kernels.padding import padded_map
from ..kernels.window_plans import pad_to_multiple
from ..registry import MODELS
from .arguments import (
    check_sizes,
    drop_path_rates,
    per_stage,
    refuse_arguments,
    resolve_arch,
    window_sides,
)
from .base import Mlp, Stage, StagedBackbone, build_norm, norm_mlp
from .folding import fold_after, fold_before, require_eval
from .mixing_attention import MixingAttention, SuccessiveAttention, WindowAttentionBlock


class ConvMlp(Mlp):
    """MLP with a 3x3 depth-wise convolution between its linear layers (Table 9)."""

    def __init__(
        self, dim: int, hidden_dim: int, act_cfg: dict = dict(type='GELU'), drop: float = 0.0
    ) -> None:
        super().__init__(dim, hidden_dim, act_cfg, drop)
        self.dwconv = MapConv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(self.act(x))))


@fused_module
class MixingBlock(BaseModule):
    """Mixing block, section 3.1: MIX (Eq. 1) and an FFN (Eq. 2), each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        attn (WindowAttentionBlock): MIX, of the same channels.
        mlp (Mlp): The FFN, of the same channels.
        drop_path (float): Rate of stochastic depth. Default: 0.
        norm_cfg (dict): Norms. Default: LN.
    """

    def __init__(
        self,
        dim: int,
        attn: WindowAttentionBlock,
        mlp: Mlp,
        drop_path: float = 0.0,
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__()
        self.norm1 = build_norm(norm_cfg, dim)
        self.attn = attn
        self.norm2 = build_norm(norm_cfg, dim)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        steps = ((self.attn, step) for step in ('enter', 'mix', 'leave'))
        if not self.attn.keep_maps and can_infer(x, self, *steps):
            return self._forward_by_bands(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(norm_mlp(self.norm2, self.mlp, x))

    def _forward_by_bands(self, x: Tensor) -> Tensor:
        """Compute :meth:`forward` by bands, but for attention and convolution."""
        attn, width = self.attn, self.mlp.fc1.out_features
        (_, height, _, dim), side = x.shape, attn.window_size

        def begin(x: Tensor) -> tuple[Tensor, ...]:
            return attn.enter(self.norm1(x))

        def end(x: Tensor, *maps: Tensor) -> tuple[Tensor]:
            x = x + self.drop_path(attn.leave(x.shape[1:3], *maps))
            return (x + self.drop_path(norm_mlp(self.norm2, self.mlp, x)),)

        tokens = attn.enter(x.new_zeros(1, 1, 1, dim))
        padded = [padded_map(token, x.shape[:3], side) for token in tokens]
        by_bands(begin, 2 * dim, x, outs=[inside for _, inside in padded])
        maps = attn.mix(*(whole for whole, _ in padded))
        # Columns of padding stay until a map is copied anyway: a convolution copies a narrowed map.
        (x,) = by_bands(end, width, x, *(map_[:, :height] for map_ in maps))
        return x


@fused_module
class ConvStem(BaseModule):
    """Convolution stem, section 3.2: three 3x3 convolutions, then patches are embedded.

    The map is zero-padded at the right and at the bottom to a multiple of the patch.

    Args:
        in_channels (int): Channels in.
        embed_dims (int): Channels out.
        patch_size (int): Stride of the stem, in pixels, even. Default: 4.
        act_cfg (dict): Activations. Default: GELU.
        norm_cfg (dict): Norm of the patches; the convolutions have BN. Default: LN.

    Raises:
        ValueError: If the patch size is odd.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int = 4,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__()
        if patch_size < 2 or patch_size % 2:
            raise ValueError(
                f'MixFormer: patch_size={patch_size}; give an even one, since the '
                'last step of the stem halves the map'
            )
        self.patch_size = patch_size
        dim = embed_dims // 2
        layers = []
        for channels, stride in ((in_channels, patch_size // 2), (dim, 1), (dim, 1)):
            layers += [
                MapConv2d(channels, dim, 3, stride, padding=1),
                nn.BatchNorm2d(dim),
                build_activation_layer(act_cfg),
            ]
        self.stem = nn.Sequential(*layers)
        self.proj = PatchConv2d(dim, embed_dims, 2)
        self.norm = build_norm(norm_cfg, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / patch_size), ceil(W / patch_size), embed_dims)."""
        x = pad_to_multiple(x, self.patch_size, channels_first=True)
        # With channels last in memory, 3 x 3 convolutions take half the time on a CPU.
        x = x.permute(0, 2, 3, 1).contiguous()
        if not (can_infer(x, self, (self, 'embed')) and is_folded(self.stem)):
            return self.embed(x)[0]
        # Three convolutions reach three pixels of the stem beyond a patch of two.
        width = 4 * self.proj.in_channels
        (x,) = by_bands(self.embed, width, x, shrink=self.patch_size, halo=2)
        return x

    @fused_step
    def embed(self, x: Tensor) -> tuple[Tensor]:
        """(N, H, W, C) -> (N, H / patch_size, W / patch_size, embed_dims)."""
        x = apply_folded(self.stem, x.permute(0, 3, 1, 2))
        return (self.norm(self.proj(x).permute(0, 2, 3, 1)),)

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        for i in range(0, len(self.stem), 3):
            fold_before(self.stem, i)


@fused_module
class ConvMerging(nn.Module):
    """Step between two stages: BatchNorm and a 2x2 convolution of stride 2.

    Args:
        dim (int): Channels in.
        out_dim (int): Channels out.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.reduction = PatchConv2d(dim, out_dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / 2), ceil(W / 2), C')."""
        # The official code takes even maps only. Odd ones are padded before the norm, as in Swin.
        x = pad_to_multiple(x, 2, channels_first=True)
        x = x.permute(0, 2, 3, 1)
        if not can_infer(x, self, (self, 'merge')):
            return self.merge(x)[0]
        (x,) = by_bands(self.merge, 4 * x.shape[-1], x, shrink=2)
        return x

    @fused_step
    def merge(self, x: Tensor) -> tuple[Tensor]:
        """(N, H, W, C) -> (N, H / 2, W / 2, C')."""
        return (self.reduction(self.norm(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1),)

    def fold_norms(self) -> None:
        """See :meth:`MixFormer.fold_norms`."""
        if isinstance(self.norm, _BatchNorm):
            fold_after(self.norm, self.reduction)
            self.norm = nn.Identity()


def _arch(
    embed_dims: int, depths: tuple[int, ...], num_heads: tuple[int, ...], drop_path_rate: float
) -> dict:
    return dict(
        embed_dims=embed_dims, depths=depths, num_heads=num_heads, drop_path_rate=drop_path_rate
    )


@MODELS.register_module()
class MixFormer(StagedBackbone):
    """MixFormer, section 3.2.

    Parameters have the names of the official code, so that its checkpoints load as they are,
    Paddle's files included; position biases of another window size and depth-wise kernels of
    another size are fitted (:meth:`MixingAttention.fit_state_dict`).

    Args:
        arch (str, dict or None): ``'b0'`` to ``'b6'`` (Table 2 has B1 to B4), or the settings
            themselves (``embed_dims`` and ``depths`` at least). None: the arguments give them.
            Default: ``'b1'``.
        embed_dims (int or Sequence[int], optional): Channels of the first stage, doubled from
            stage to stage; or the channels of each stage (Table 10). Even and at least 16.
        depths (int or Sequence[int], optional): Blocks of each stage. This and the other sizes
            override the arch's; an int stands for equal stages.
        num_heads (int or Sequence[int], optional): Attention heads of each stage.
        window_size (int or Sequence[int]): Side of an attention window of each stage. Default: 7.
        dwconv_kernel_size (int): Kernel size of the depth-wise convolutions, odd (Table 8).
            Default: 3.
        qkv_bias (bool): Bias in the projection to query, key and value. Default: True.
        parallel (bool): False: the successive design, see :class:`.SuccessiveAttention` (Table 7).
            Default: True.
        channel_interaction (bool): From the convolution to the attention (Table 7). Default: True.
        spatial_interaction (bool): From the attention to the convolution (Table 7). Default: True.
        use_shift (bool): Shifts the windows of every second block by half a window (Table 9).
            Default: False.
        mlp_dwconv (bool): Adds a 3x3 depth-wise convolution to the FFNs (Table 9). Default: False.
        others: Arguments of all families, see :class:`.base.StagedBackbone`.

    Raises:
        TypeError: For an argument that is unknown, or has another name here.
        ValueError: For an unknown arch, sizes that do not match the stages or each other, an even
            kernel, an odd patch, or interactions without two branches.
    """

    classifier = ('norm', 'last_proj', 'head')
    image_layer = 'patch_embed.stem.0.weight'
    archs: ClassVar[dict[str, dict]] = {
        'b0': _arch(24, (1, 2, 6, 6), (3, 6, 12, 24), 0.0),
        'b1': _arch(32, (1, 2, 6, 6), (2, 4, 8, 16), 0.0),
        'b2': _arch(32, (2, 2, 8, 8), (2, 4, 8, 16), 0.05),
        'b3': _arch(48, (2, 2, 8, 6), (3, 6, 12, 24), 0.1),
        'b4': _arch(64, (2, 2, 8, 8), (4, 8, 16, 32), 0.2),
        'b5': _arch(96, (1, 2, 8, 6), (6, 12, 24, 48), 0.3),
        'b6': _arch(96, (2, 4, 16, 12), (6, 12, 24, 48), 0.5),
    }

    def __init__(
        self,
        arch: str | dict | None = 'b1',
        embed_dims: int | Sequence[int] | None = None,
        depths: int | Sequence[int] | None = None,
        num_heads: int | Sequence[int] | None = None,
        window_size: int | Sequence[int] = 7,
        dwconv_kernel_size: int = 3,
        qkv_bias: bool = True,
        parallel: bool = True,
        channel_interaction: bool = True,
        spatial_interaction: bool = True,
        use_shift: bool = False,
        mlp_dwconv: bool = False,
        in_channels: int = 3,
        adapt_in_channels: bool = False,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        act_cfg: dict = dict(type='GELU'),
        mlp_act_cfg: dict | None = None,
        out_indices: int | Sequence[int] | None = None,
        out_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = [
            dict(type='TruncNormal', layer='Linear', std=0.02),
            dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
        ],
        **others: Any,
    ) -> None:
        refuse_arguments(MixFormer, others)
        sizes = resolve_arch(
            'MixFormer',
            self.archs,
            arch,
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
        )
        check_sizes(
            'MixFormer',
            in_channels=in_channels,
            patch_size=patch_size,
        )
        stage_depths: tuple[int, ...] = sizes['depths']
        count, dims = len(stage_depths), sizes['embed_dims']
        sides = window_sides('MixFormer', window_size, count)
        if isinstance(dims, int):
            dims = [dims * 2**i for i in range(count)]
        dims = per_stage('MixFormer', 'embed_dims', dims, count)
        heads = per_stage('MixFormer', 'num_heads', sizes['num_heads'], count)
        drop_paths = drop_path_rates('MixFormer', sizes['drop_path_rate'], stage_depths)

        mixing = MixingAttention if parallel else SuccessiveAttention
        ffn = ConvMlp if mlp_dwconv else Mlp
        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                MixingBlock(
                    dim,
                    mixing(
                        dim,
                        heads[i],
                        window_size=sides[i],
                        dwconv_kernel_size=dwconv_kernel_size,
                        qkv_bias=qkv_bias,
                        shift_size=sides[i] // 2 if use_shift and j % 2 else 0,
                        channel_interaction=channel_interaction,
                        spatial_interaction=spatial_interaction,
                        attn_drop=attn_drop_rate,
                        drop=drop_rate,
                        act_cfg=act_cfg,
                        norm_cfg=norm_cfg,
                    ),
                    ffn(dim, int(dim * mlp_ratio), mlp_act_cfg or act_cfg, drop_rate),
                    next(drop_paths),
                    norm_cfg,
                )
                for j in range(stage_depths[i])
            ]
            down = ConvMerging(dim, dims[i + 1]) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(
            ConvStem(in_channels, dims[0], patch_size, act_cfg, norm_cfg),
            stages,
            dims,
            drop_rate,
            out_indices,
            out_norm,
            norm_cfg,
            frozen_stages,
            norm_eval,
            in_channels,
            adapt_in_channels,
            init_cfg,
        )

    def fold_norms(self) -> 'MixFormer':
        """Fold, for inference, every BatchNorm, with its running statistics, into the layer
        beside it. The maps stay the same to 1e-5; less is computed and stored.

        Load checkpoints first, since a folded network has other parameters, and do not train it
        afterwards. A second call changes nothing.

        Returns:
            MixFormer: Itself.

        Raises:
            RuntimeError: In training mode, where the statistics are the batch's.
        """
        require_eval(self, 'fold_norms')
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            self.patch_embed.fold_norms()
            for stage in self.layers:
                for block in stage.blocks:
                    block.attn.fold_norms()
                if stage.downsample is not None:
                    stage.downsample.fold_norms()
        return self
