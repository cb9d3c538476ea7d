"""Focal Transformer: Focal Attention for Long-Range Interactions in Vision Transformers
(Yang et al., NeurIPS 2021, arXiv:2107.00641).

Sections, equations and tables below are the paper's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from ..kernels.dispatch import is_compiled
from ..kernels.window_plans import add_spare_windows, pad_to_multiple, roll
from ..registry import MODELS
from .arguments import (
    check_sizes,
    drop_path_rates,
    per_stage,
    refuse_arguments,
    resolve_arch,
    window_sides,
)
from .base import Mlp, PatchEmbed, ScaledBlock, Stage, StagedBackbone, build_norm, norm_mlp
from .focal_attention import FocalAttention, MultiLevelAttention, NearestAttention, SubWindowPool


class FocalTransformerBlock(ScaledBlock):
    """Focal attention and an MLP, each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        attn (MultiLevelAttention): Of the same channels.
        focal_pool (str): How sub-windows are pooled, a method of :class:`SubWindowPool`.
            Default: ``'fc'``.
        shift_size (int): By how many tokens windows are shifted. Default: 0.
        mlp_ratio (float): Hidden channels of the MLP, as a multiple of C. Default: 4.
        drop (float): Dropout rate in the MLP. Default: 0.
        drop_path (float): Rate of stochastic depth. Default: 0.
        layer_scale_init_value (float or None): Initial value of a learned scale for each channel
            on both branches. None: no scale. Default: None.
        act_cfg (dict): Activation. Default: GELU.
        norm_cfg (dict): Norms. Default: LN.
    """

    def __init__(
        self,
        dim: int,
        attn: MultiLevelAttention,
        focal_pool: str = 'fc',
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = None,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__(dim, drop_path, layer_scale_init_value)
        self.window_size = attn.window_size
        self.shift_size = shift_size
        self.pool_layers = nn.ModuleList(
            SubWindowPool(dim, self.window_size >> level, focal_pool)
            for level in range(attn.pooled_levels)
        )
        self.norm1 = build_norm(norm_cfg, dim)
        self.attn = attn
        self.norm2 = build_norm(norm_cfg, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self.add(x, self.attend(self.norm1(x)), self.gamma_1)
        return self.add(x, norm_mlp(self.norm2, self.mlp, x), self.gamma_2)

    def attend(self, x: Tensor) -> Tensor:
        """Apply focal self-attention (section 3.2): (N, H, W, C) -> (N, H, W, C)."""
        height, width = x.shape[1:3]
        # The padding is attended to, as in the official code.
        x = pad_to_multiple(x, self.window_size)
        shift = None
        if self.shift_size:
            # A map that is one window high or wide is not shifted.
            rows, cols = (side // self.window_size for side in x.shape[1:3])
            shift = (self.shift_size * (1 - 1 // rows) * (1 - 1 // cols),) * 2
        return self.attn([x, *self.pool(x, shift)], height, width, shift)

    def pool(self, x: Tensor, shift: tuple[int, int] | None) -> list[Tensor]:
        """Pool the sub-windows of all levels (Eq. 1) of a map of whole windows.

        Args:
            x (Tensor): Shape (N, H, W, C).
            shift (tuple[int, int], optional): By how many tokens the windows are shifted.

        Returns:
            list[Tensor]: The pooled maps: map k has 2^k x 2^k tokens a window.
        """
        if shift is not None:
            x = roll(x, (-shift[0], -shift[1]))
        rows, cols = (side // self.window_size for side in x.shape[1:3])
        x = add_spare_windows(x, self.window_size)
        tall, broad = (side // self.window_size for side in x.shape[1:3])
        maps = []
        for level, pool in enumerate(self.pool_layers):
            # Where sub-windows do not fill the windows, the rim of the map is left out.
            filled = 2**level * pool.side
            top, left = (n * (self.window_size - filled) // 2 for n in (rows, cols))
            maps.append(pool(x[:, top : top + tall * filled, left : left + broad * filled]))
        return maps


class PreNormPatchEmbed(PatchEmbed):
    """:class:`.base.PatchEmbed` after a GroupNorm, which keeps the values of the map small."""

    def __init__(self, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(in_channels, *args, **kwargs)
        self.pre_norm = nn.GroupNorm(1, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / patch_size), ceil(W / patch_size), embed_dims)."""
        # GroupNorm fails under some torch.func transforms if channels are last in memory, and in
        # graphs (torch 2.14) if they are so in its gradient alone.
        return super().forward(self.pre_norm(x if is_compiled() else x.contiguous()))


def _arch(
    embed_dims: int, depths: tuple[int, ...], use_conv_embed: bool, focal_topk: int | None
) -> dict:
    """Return settings. All archs of Table 1 have heads of 32 channels and the same levels and
    regions.
    """
    return dict(
        embed_dims=embed_dims,
        depths=depths,
        num_heads=tuple(embed_dims // 32 * 2**i for i in range(len(depths))),
        focal_levels=2,
        focal_windows=(7, 5, 3, 1),
        expand_sizes=(3, 3, 3, 0),
        use_conv_embed=use_conv_embed,
        focal_topk=focal_topk,
    )


@MODELS.register_module()
class FocalTransformer(StagedBackbone):
    """Focal Transformer, section 3.

    Parameters have the names of the official code, so that its checkpoints load as they are;
    biases are fitted to the model (:meth:`FocalAttention.fit_state_dict`).

    Any map is padded to whole windows. The official classifier instead is built for one image: a
    stage whose map is not larger than a window gets windows as large as the map, and neither
    surroundings nor shift. At 224x224, its window of 14 (Table 7) is ``window_size=(14, 14, 14, 7),
    expand_sizes=(3, 3, 0, 0)`` here.

    Args:
        arch (str, dict or None): A name below, or the settings themselves (``embed_dims`` and
            ``depths`` at least). None: the arguments give them. Default: ``'tiny'``.

            - ``tiny``, ``small``, ``base``: Table 1.
            - ``large``: section 4.1, with 192 channels; the paper's 196 are not divisible into
              heads of 32. ``configs/htc`` and ``configs/dyhead`` have 196, in heads of 28.
            - the same with ``_conv``: overlapped patch embedding.
            - ``fast_tiny``, ``fast_small``, ``fast_base``: the authors' faster version, with
              :class:`NearestAttention` and overlapped patch embedding.
        embed_dims (int, optional): Channels of the first stage, doubled from stage to stage.
        depths (int or Sequence[int], optional): Blocks of each stage (Table 9). This and the other
            sizes override the arch's; an int stands for equal stages.
        num_heads (int or Sequence[int], optional): Attention heads of each stage.
        window_size (int or Sequence[int]): Side of a window of each stage, Table 7. Default: 7.
        focal_levels (int or Sequence[int], optional): Levels of attention of each stage, the fine
            one included. 1 leaves the pooled maps out (Figure 5, window and local).
        focal_windows (int or Sequence[int], optional): Side of the region of the first pooled map
            of each stage, in windows, odd; the region of map k is 2^k - 1 sub-windows larger.
            ImageNet checkpoints have (7, 5, 3, 1), the paper's detectors (15, 13, 9, 7) (section
            4.2).
        expand_sizes (int or Sequence[int], optional): Depth of the surroundings that each stage
            attends to token by token. 0: none (Figure 5, window and global).
        focal_pool (str): How sub-windows are pooled, see :class:`SubWindowPool`; ``'none'`` leaves
            the pooled maps out. Default: ``'fc'``.
        focal_topk (int, optional): Tokens of each level that a window attends to in the faster
            version, where ``focal_windows`` and ``expand_sizes`` have no meaning.
        use_conv_embed (bool, optional): Overlapped patch embedding.
        use_shift (bool): Shifts the windows of every other block (Table 8) if the map is higher
            and wider than a window. Default: False.
        use_pre_norm (bool): Applies a norm before the patch embeddings between stages. Default:
            False.
        qkv_bias (bool): Bias of the query, key and value projections. Default: True.
        layer_scale_init_value (float or None): Initial value of the learned scale on each branch.
            None: no scale. Default: None.
        others: Arguments of all families, see :class:`.base.StagedBackbone`.

    Raises:
        TypeError: For an argument that is unknown, or has another name here.
        ValueError: For an unknown arch or pooling, or sizes that do not match the stages, the
            window or each other.
    """

    archs: ClassVar[dict[str, dict]] = {
        template.format(name): _arch(embed_dims, depths, *kind)
        for template, *kind in (
            ('{}', False, None),
            ('{}_conv', True, None),
            ('fast_{}', True, 128),
        )
        for name, embed_dims, depths in (
            ('tiny', 96, (2, 2, 6, 2)),
            ('small', 96, (2, 2, 18, 2)),
            ('base', 128, (2, 2, 18, 2)),
            ('large', 192, (2, 2, 18, 2)),
        )
        if (template, name) != ('fast_{}', 'large')
    }

    # How the names of the constants begin that the official code stores.
    _stored_constants = (
        'relative_position_index',
        'valid_ind_',
        'attn_mask',
        'topk_cloest_',
        'window_coords',
    )

    def __init__(
        self,
        arch: str | dict | None = 'tiny',
        embed_dims: int | None = None,
        depths: int | Sequence[int] | None = None,
        num_heads: int | Sequence[int] | None = None,
        window_size: int | Sequence[int] = 7,
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
        adapt_in_channels: bool = False,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        act_cfg: dict = dict(type='GELU'),
        out_indices: int | Sequence[int] | None = None,
        out_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = dict(type='TruncNormal', layer='Linear', std=0.02),
        **others: Any,
    ) -> None:
        refuse_arguments(FocalTransformer, others)
        if focal_pool not in (*SubWindowPool.methods, 'none'):
            raise ValueError(
                f'FocalTransformer: unknown focal_pool {focal_pool!r}; choose from '
                f'{", ".join(SubWindowPool.methods)}, none'
            )
        sizes = resolve_arch(
            'FocalTransformer',
            self.archs,
            arch,
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            focal_levels=focal_levels,
            focal_windows=focal_windows,
            expand_sizes=expand_sizes,
            focal_topk=focal_topk,
            use_conv_embed=use_conv_embed,
        )
        check_sizes(
            'FocalTransformer',
            in_channels=in_channels,
            embed_dims=sizes['embed_dims'],
            patch_size=patch_size,
        )
        stage_depths: tuple[int, ...] = sizes['depths']
        count = len(stage_depths)
        sides = window_sides('FocalTransformer', window_size, count)
        heads, levels, windows, expand = (
            per_stage('FocalTransformer', name, sizes[name], count)
            for name in ('num_heads', 'focal_levels', 'focal_windows', 'expand_sizes')
        )
        dims = [sizes['embed_dims'] * 2**i for i in range(count)]
        stem_overlap, overlap = (patch_size // 2, 1) if sizes['use_conv_embed'] else (None, None)
        embed = PreNormPatchEmbed if use_pre_norm else PatchEmbed
        drop_paths = drop_path_rates('FocalTransformer', drop_path_rate, stage_depths)

        stages = []
        for i, dim in enumerate(dims):
            most = sides[i].bit_length() + 1
            if not 1 <= levels[i] <= most:
                raise ValueError(
                    f'FocalTransformer: focal_levels={levels[i]} with window_size={sides[i]}; '
                    'the fine level counts, and each pooled one after the first halves the '
                    f'sub-window: choose from 1 to {most}'
                )
            build: Callable[..., MultiLevelAttention]
            if sizes['focal_topk'] is None:
                build = partial(FocalAttention, expand_size=expand[i], focal_window=windows[i])
            else:
                build = partial(NearestAttention, topk=sizes['focal_topk'])
            blocks = [
                FocalTransformerBlock(
                    dim,
                    build(
                        dim,
                        heads[i],
                        sides[i],
                        pooled_levels=0 if focal_pool == 'none' else levels[i] - 1,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=drop_rate,
                    ),
                    focal_pool,
                    sides[i] // 2 if use_shift and number % 2 else 0,
                    mlp_ratio,
                    drop_rate,
                    next(drop_paths),
                    layer_scale_init_value,
                    act_cfg,
                    norm_cfg,
                )
                for number in range(stage_depths[i])
            ]
            down = embed(dim, 2 * dim, 2, overlap, norm_cfg) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(
            PatchEmbed(in_channels, dims[0], patch_size, stem_overlap, norm_cfg),
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

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Also leave out the constants that the official code stores; the sizes determine them."""
        super().fit_state_dict(state_dict, prefix)
        for key in list(state_dict):
            if key.startswith(prefix) and key.split('.')[-1].startswith(self._stored_constants):
                del state_dict[key]
