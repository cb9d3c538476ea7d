"""FocalNet: Focal Modulation Networks (Yang et al., NeurIPS 2022, arXiv:2203.11926).

Equations, sections and tables below are the paper's.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels.dispatch import fused_module
from ..kernels.inference import by_bands, can_infer
from ..registry import MODELS
from .arguments import check_sizes, drop_path_rates, per_stage, refuse_arguments, resolve_arch
from .base import MapNorm, Mlp, PatchEmbed, ScaledBlock, Stage, StagedBackbone, build_norm, norm_mlp
from .focal_modulation import MODULATIONS, FocalModulation
from .folding import require_eval


@fused_module
class FocalNetBlock(ScaledBlock):
    """Focal modulation and an MLP, each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        modulation (FocalModulation): Of the same channels.
        mlp_ratio (float): Hidden channels of the MLP, as a multiple of C. Default: 4.
        drop (float): Dropout rate in the MLP. Default: 0.
        drop_path (float): Rate of stochastic depth. Default: 0.
        layer_scale_init_value (float or None): Initial value of a learned scale for each channel
            on both branches. None: no scale. Default: None.
        use_postln (bool): Norms after the branches instead of before. Default: False.
        act_cfg (dict): Activation of the MLP. Default: GELU.
        norm_cfg (dict): Norms. Default: LN.
    """

    def __init__(
        self,
        dim: int,
        modulation: FocalModulation,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = None,
        use_postln: bool = False,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN'),
    ) -> None:
        super().__init__(dim, drop_path, layer_scale_init_value)
        self.use_postln = use_postln
        self.norm1 = build_norm(norm_cfg, dim)
        self.modulation = modulation
        self.norm2 = build_norm(norm_cfg, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        modulation = self.modulation
        steps = ((modulation, step) for step in ('split', 'modulate', 'emit'))
        if not modulation.keep_maps and can_infer(x, self, *steps):
            return self._forward_by_bands(x)
        return self._add_branches(x, modulation(x if self.use_postln else self.norm1(x)))

    def _add_branches(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add the modulated map, and then the MLP's."""
        if self.use_postln:
            x = self.add(x, self.norm1(branch), self.gamma_1)
            return self.add(x, self.norm2(self.mlp(x)), self.gamma_2)
        x = self.add(x, branch, self.gamma_1)
        return self.add(x, norm_mlp(self.norm2, self.mlp, x), self.gamma_2)

    def _forward_by_bands(self, x: Tensor) -> Tensor:
        """Compute :meth:`forward` by bands, but for the gathering of contexts."""
        modulation, width = self.modulation, self.mlp.fc1.out_features

        def begin(x: Tensor) -> tuple[Tensor, ...]:
            return modulation.split(x if self.use_postln else self.norm1(x))

        def end(x: Tensor, query: Tensor, context: Tensor) -> tuple[Tensor]:
            return (self._add_branches(x, modulation.emit(query, context)),)

        query, context, gates = by_bands(begin, width, x)
        context = modulation.gather(context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2))
        (x,) = by_bands(end, width, x, query, context.permute(0, 2, 3, 1))
        return x

    @torch.no_grad()
    def fold_scales(self) -> None:
        """See :meth:`FocalNet.fold_scales`."""
        last = (self.norm1, self.norm2) if self.use_postln else (self.modulation.proj, self.mlp.fc2)
        for name, module in zip(('gamma_1', 'gamma_2'), last, strict=True):
            gamma = getattr(self, name)
            layer: Any = module.norm if isinstance(module, MapNorm) else module
            if gamma is not None and layer.weight is not None:
                layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
                if layer.bias is not None:
                    layer.bias.mul_(gamma)
                setattr(self, name, None)
        if self.modulation.normalize_modulator:
            self.modulation.h.weight.div_(self.modulation.focal_level + 1)
            self.modulation.normalize_modulator = False


def _arch(
    embed_dims: int,
    depths: tuple[int, ...],
    focal_levels: int,
    focal_windows: int = 3,
    patch_size: int = 4,
    large: bool = False,
    **flags: Any,
) -> dict:
    """Return settings; ``large`` turns on overlapped patches, post-norm and layer scale, which
    stabilize large networks.
    """
    return dict(
        dict(
            embed_dims=embed_dims,
            depths=depths,
            focal_levels=focal_levels,
            focal_windows=focal_windows,
            patch_size=patch_size,
            use_conv_embed=large,
            layer_scale_init_value=1e-4 if large else None,
            use_postln=large,
            use_postln_in_modulation=False,
            normalize_modulator=False,
        ),
        **flags,
    )


@MODELS.register_module()
class FocalNet(StagedBackbone):
    """FocalNet, section 3.4.

    Parameters have the names of the official code, so that its checkpoints load as they are;
    kernels and focal levels are fitted to the model (:meth:`FocalModulation.fit_state_dict`).

    Args:
        arch (str, dict or None): A name below, or the settings themselves (``embed_dims`` and
            ``depths`` at least). None: the arguments give them. Default: ``'tiny_lrf'``.

            - ``tiny``, ``small``, ``base`` with ``_srf`` (2 focal levels) or ``_lrf`` (3): Table 1.
            - the same with ``_deep``, deeper and thinner: Table 3.
            - ``tiny_iso``, ``small_iso``, ``base_iso``: Table 13, one stage, patches of 16.
            - ``large_srf``: FocalNet-L of Table 4.
            - ``large``, ``xlarge``, ``huge`` with ``_fl3`` or ``_fl4``, the ImageNet-22K models:
              3 or 4 focal levels, with the flags of their official yaml files.
        embed_dims (int, optional): Channels of the first stage, doubled from stage to stage.
        depths (int or Sequence[int], optional): Blocks of each stage. This and the other sizes
            override the arch's; an int stands for equal stages.
        focal_levels (int or Sequence[int], optional): Focal levels L of each stage.
        focal_windows (int or Sequence[int], optional): Kernel size of the first focal level of
            each stage, odd. ImageNet checkpoints have 3 (large, xlarge ``_fl3``: 5), the paper's
            Mask R-CNN 9 (section 4.2).
        focal_factor (int): Growth of the kernel from level to level. Default: 2.
        modulation (str or type): ``'focal'``, the name of a variant of Tables 10 and 11 in
            :data:`MODULATIONS`, or a subclass of :class:`FocalModulation`. Table 12 is
            ``focal_levels`` and ``focal_windows``. Default: ``'focal'``.
        use_conv_embed (bool, optional): Overlapped patch embedding, Table 2. The official
            classifier pads its 7x7 stem by 2 pixels, the official detector (here: ``out_norm``)
            by 3; both are reproduced. For a patch size p, kernels are 2p - 1 and the padding is
            p // 2 without ``out_norm`` and p - 1 with it.
        layer_scale_init_value (float, None or 'arch'): Initial value of the learned scale on each
            branch. None: no scale. Default: ``'arch'``, the value of the arch.
        use_postln (bool, optional): Norms after the branches.
        use_postln_in_modulation (bool, optional): A norm within the modulation.
        normalize_modulator (bool, optional): Divides the gathered context by L + 1.
        stem_padding (int, optional): Padding in pixels of an overlapped stem, where it is not the
            one above: detrex, FocalNet-DINO and PaddleDetection pad it by 2 in their detectors.
        others: Arguments of all families, see :class:`.base.StagedBackbone`.

    Raises:
        TypeError: For an argument that is unknown, or has another name here.
        ValueError: For an unknown arch or modulation, sizes that do not match the stages, or an
            even kernel.
    """

    archs: ClassVar[dict[str, dict]] = {
        'tiny_lrf': _arch(96, (2, 2, 6, 2), 3),
        'tiny_srf': _arch(96, (2, 2, 6, 2), 2),
        'small_srf': _arch(96, (2, 2, 18, 2), 2),
        'small_lrf': _arch(96, (2, 2, 18, 2), 3),
        'base_srf': _arch(128, (2, 2, 18, 2), 2),
        'base_lrf': _arch(128, (2, 2, 18, 2), 3),
        # The parameter counts in Table 3 include overlapped patch embedding.
        'tiny_srf_deep': _arch(64, (3, 3, 16, 3), 2, use_conv_embed=True),
        'tiny_lrf_deep': _arch(64, (3, 3, 16, 3), 3, use_conv_embed=True),
        'small_srf_deep': _arch(64, (4, 4, 28, 4), 2, use_conv_embed=True),
        'small_lrf_deep': _arch(64, (4, 4, 28, 4), 3, use_conv_embed=True),
        'base_srf_deep': _arch(96, (4, 4, 28, 4), 2, use_conv_embed=True),
        'base_lrf_deep': _arch(96, (4, 4, 28, 4), 3, use_conv_embed=True),
        'tiny_iso': _arch(192, (12,), 3, patch_size=16),
        'small_iso': _arch(384, (12,), 3, patch_size=16),
        # The official builder of this model sets both flags; its yaml file sets neither.
        'base_iso': _arch(
            768, (12,), 3, patch_size=16, layer_scale_init_value=1e-4, use_postln=True
        ),
        'large_srf': _arch(192, (2, 2, 18, 2), 2),
        'large_fl3': _arch(192, (2, 2, 18, 2), 3, 5, large=True),
        'large_fl4': _arch(192, (2, 2, 18, 2), 4, large=True, normalize_modulator=True),
        'xlarge_fl3': _arch(256, (2, 2, 18, 2), 3, 5, large=True),
        'xlarge_fl4': _arch(256, (2, 2, 18, 2), 4, large=True),
        'huge_fl3': _arch(352, (2, 2, 18, 2), 3, large=True, use_postln_in_modulation=True),
        'huge_fl4': _arch(352, (2, 2, 18, 2), 4, large=True, use_postln_in_modulation=True),
    }

    def __init__(
        self,
        arch: str | dict | None = 'tiny_lrf',
        embed_dims: int | None = None,
        depths: int | Sequence[int] | None = None,
        focal_levels: int | Sequence[int] | None = None,
        focal_windows: int | Sequence[int] | None = None,
        focal_factor: int = 2,
        modulation: str | type[FocalModulation] = 'focal',
        use_conv_embed: bool | None = None,
        layer_scale_init_value: float | str | None = 'arch',
        use_postln: bool | None = None,
        use_postln_in_modulation: bool | None = None,
        normalize_modulator: bool | None = None,
        in_channels: int = 3,
        adapt_in_channels: bool = False,
        patch_size: int | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        act_cfg: dict = dict(type='GELU'),
        mlp_act_cfg: dict | None = None,
        stem_padding: int | None = None,
        out_indices: int | Sequence[int] | None = None,
        out_norm: bool = True,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = dict(type='TruncNormal', layer='Linear', std=0.02),
        **others: Any,
    ) -> None:
        refuse_arguments(FocalNet, others)
        sizes = resolve_arch(
            'FocalNet',
            self.archs,
            arch,
            embed_dims=embed_dims,
            depths=depths,
            focal_levels=focal_levels,
            focal_windows=focal_windows,
            patch_size=patch_size,
            use_conv_embed=use_conv_embed,
            use_postln=use_postln,
            use_postln_in_modulation=use_postln_in_modulation,
            normalize_modulator=normalize_modulator,
        )
        if isinstance(modulation, str):
            if modulation not in MODULATIONS:
                raise ValueError(
                    f'FocalNet: unknown modulation {modulation!r}; choose from '
                    f'{", ".join(MODULATIONS)}, or give a subclass of FocalModulation'
                )
            modulation = MODULATIONS[modulation]
        if layer_scale_init_value != 'arch':
            sizes['layer_scale_init_value'] = layer_scale_init_value
        check_sizes(
            'FocalNet',
            in_channels=in_channels,
            embed_dims=sizes['embed_dims'],
            patch_size=sizes['patch_size'],
        )
        stage_depths: tuple[int, ...] = sizes['depths']
        count = len(stage_depths)
        levels = per_stage('FocalNet', 'focal_levels', sizes['focal_levels'], count)
        windows = per_stage('FocalNet', 'focal_windows', sizes['focal_windows'], count)
        dims = [sizes['embed_dims'] * 2**i for i in range(count)]
        patch = sizes['patch_size']
        stem_overlap = overlap = None
        if sizes['use_conv_embed']:
            stem_overlap, overlap = patch - 1 if out_norm else patch // 2, 1
            if stem_padding is not None:
                stem_overlap = stem_padding
        drop_paths = drop_path_rates('FocalNet', drop_path_rate, stage_depths)

        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                FocalNetBlock(
                    dim,
                    modulation(
                        dim,
                        levels[i],
                        windows[i],
                        focal_factor,
                        use_postln=sizes['use_postln_in_modulation'],
                        normalize_modulator=sizes['normalize_modulator'],
                        act_cfg=act_cfg,
                        norm_cfg=norm_cfg,
                        drop=drop_rate,
                    ),
                    mlp_ratio,
                    drop_rate,
                    next(drop_paths),
                    sizes['layer_scale_init_value'],
                    sizes['use_postln'],
                    mlp_act_cfg or act_cfg,
                    norm_cfg,
                )
                for _ in range(stage_depths[i])
            ]
            down = PatchEmbed(dim, 2 * dim, 2, overlap, norm_cfg) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(
            PatchEmbed(in_channels, dims[0], patch, stem_overlap, norm_cfg),
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

    def fold_scales(self) -> 'FocalNet':
        """Fold, for inference, the learned scales on the branches and the division of the
        gathered context into the layers beside them. The maps stay the same to 1e-5. Of the archs
        with a name only ``large`` to ``huge`` and ``base_iso`` have something to fold.

        Load checkpoints first, since a folded network has other parameters. A second call changes
        nothing.

        Returns:
            FocalNet: Itself.

        Raises:
            RuntimeError: In training mode.
        """
        require_eval(self, 'fold_scales')
        for stage in self.layers:
            for block in stage.blocks:
                block.fold_scales()
        return self
