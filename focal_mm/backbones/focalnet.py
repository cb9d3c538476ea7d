"""FocalNet: Focal Modulation Networks (Yang et al., NeurIPS 2022, arXiv:2203.11926).

Equations, sections and tables below are the paper's.
"""
import logging
from collections.abc import Sequence
from textwrap import shorten

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..weights.resize import CheckpointError, FittedModule, fit_gates, fit_kernel
from .depthwise import (autocast, convolve, depthwise_conv2d, input_gradient, wants_grad,
                        weight_gradient)
from .layers import (Mlp, PatchEmbed, Stage, StagedBackbone, convolve_patches, is_gelu, is_graph,
                     is_plain, linear, per_stage, project, resolve_arch)

triton_works = True  # until it fails for the first time


def is_for_triton(*tensors: Tensor) -> bool:
    """Whether tensors can go to :mod:`.focalnet_triton`: real ones on a GPU, of one dtype other
    than double, while nobody counts or records operations. Offsets there have 32 bits."""
    first = tensors[0]
    return (triton_works and first.is_cuda and type(first) is Tensor and first.numel() < 2**31
            and first.dtype in (torch.float, torch.half, torch.bfloat16)
            and all(tensor.dtype == first.dtype for tensor in tensors)
            and not is_graph() and _get_current_dispatch_mode() is None)


def by_triton(name: str, *tensors: Tensor, **kwargs) -> Tensor | tuple[Tensor, ...] | None:
    """Calls a function of :mod:`.focalnet_triton`.

    Returns:
        What the function gives, or None: PyTorch has to do it. After the first failure (no
        Triton, no C compiler, an old GPU), which is logged in one line, that is so for the rest
        of the process.
    """
    global triton_works
    if not is_for_triton(*tensors):
        return None
    try:
        from . import focalnet_triton
        with torch.cuda.device_of(tensors[0]):
            return getattr(focalnet_triton, name)(*tensors, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        triton_works = False
        reason = shorten(f'{type(error).__name__}: {error}', 300)
        print_log(f'FocalNet: Triton does not work here ({reason}); focal modulation is left to '
                  'PyTorch', logger='current', level=logging.WARNING)
        return None


class GatedContext(torch.autograd.Function):
    """Eq. 4 with GELU, and Eq. 5, in one.

    For the backward pass only what the convolutions give is stored; GELU and gating are computed
    again.
    """

    @staticmethod
    def compute(context: Tensor, gates: Tensor, *kernels: Tensor,
                stored: list[Tensor] | None = None) -> Tensor:
        """
        Args:
            context (Tensor): z^0, shape (N, C, H, W).
            gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).
            kernels (Tensor): Of each level, shape (C, 1, k, k).
            stored (list, optional): Takes what GELU is applied to, levels and global average.

        Returns:
            Tensor: The context of Eq. 5, shape (N, C, H, W).
        """
        out = by_triton('forward', context, gates, *kernels, stored=stored)
        if out is not None:
            return out
        for level, kernel in enumerate(kernels):
            context = convolve(context, kernel)
            if stored is None:
                torch.ops.aten.gelu_(context)
            else:
                stored.append(context)
                context = F.gelu(context)
            gate = gates[:, level:level + 1]
            out = context * gate if out is None else out.addcmul_(context, gate)
        mean = context.mean((2, 3), keepdim=True)
        if stored is not None:
            stored.append(mean)
        whole, gate = F.gelu(mean), gates[:, -1:]
        return whole * gate if out is None else out.addcmul_(whole, gate)

    @staticmethod
    def forward(ctx, context: Tensor, gates: Tensor, *kernels: Tensor) -> Tensor:
        stored: list[Tensor] = []
        out = GatedContext.compute(context, gates, *kernels, stored=stored)
        ctx.save_for_backward(context, gates, *kernels, *stored)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        grads = by_triton('backward', grad, *saved)
        if grads is not None:
            return grads
        context, gates, *rest = saved
        levels = len(rest) // 2
        kernels, stored, mean = rest[:levels], rest[levels:-1], rest[-1]
        grad_gates, grad_kernels = torch.empty_like(gates), [None] * levels
        grad_gates[:, -1:] = (grad * F.gelu(mean)).sum(1, keepdim=True)
        carry = torch.ops.aten.gelu_backward((grad * gates[:, -1:]).sum((2, 3), keepdim=True), mean)
        carry = carry / context[0, 0].numel()
        z = F.gelu(stored[-1]) if levels else context
        for level in reversed(range(levels)):
            grad_gates[:, level] = (grad * z).sum(1)
            carry = torch.addcmul(carry, grad, gates[:, level:level + 1])
            carry = torch.ops.aten.gelu_backward(carry, stored[level])
            z = F.gelu(stored[level - 1]) if level else context
            grad_kernels[level] = weight_gradient(z, carry, kernels[level].shape[-1])
            carry = input_gradient(z, kernels[level], carry)
        return carry.expand_as(context), grad_gates, *grad_kernels


class FocalModulation(FittedModule):
    r"""Focal modulation, section 3.2 and Algorithm 1.

    Each token's query is multiplied by a modulator, its surroundings gathered at L focal levels
    (Eq. 4) and once over the whole map, each level weighed by the token's own gate (Eq. 5):

    .. math:: y_i = q(x_i) \odot h\Big(\sum_{\ell=1}^{L+1} g_i^\ell \cdot z_i^\ell\Big)
        \qquad\text{(Eq. 6)}

    Args:
        dim (int): Channels C.
        focal_level (int): L, the number of focal levels; 0 leaves the global context alone.
        focal_window (int): Kernel size k of the first level, odd.
        focal_factor (int): By how much k grows from level to level, even. Default: 2.
        variant (str): Which row of Tables 10 and 11 to compute. All variants have the parameters
            of ``'focal'`` (``'pooling'`` has no kernels), so that one checkpoint serves them:

            - ``'focal'``: Eq. 6.
            - ``'additive'``: the modulator is added to the query.
            - ``'no_global'``: without the global context.
            - ``'top_only'``: level L alone.
            - ``'no_gating'``: every gate is 1.
            - ``'pooling'``: levels by average pooling, without activation.
            - ``'convnet'``: depth-wise ConvNet, y = q(GELU(h(z^L))).
        use_postln (bool): Norm before the output projection. Default: False.
        normalize_modulator (bool): Divides the gathered context by L + 1. Default: False.
        act_cfg (dict): The activation of Eq. 4. Default: GELU.
        norm_cfg (dict): That of ``use_postln``. Default: LN.
        drop (float): Dropout rate of the output. Default: 0.

    Attributes:
        keep_maps (bool): Whether the next forward keeps ``gates`` (N, H, W, L + 1) and
            ``modulator`` (N, H, W, C), detached, on the module (Figures 3 and 4). Default: False.

    Raises:
        ValueError: For an unknown variant, or a kernel size that is even or below 1.
    """

    variants = ('focal', 'additive', 'no_global', 'top_only', 'no_gating', 'pooling', 'convnet')

    def __init__(self, dim: int, focal_level: int, focal_window: int, focal_factor: int = 2,
                 variant: str = 'focal', use_postln: bool = False,
                 normalize_modulator: bool = False, act_cfg: dict = dict(type='GELU'),
                 norm_cfg: dict = dict(type='LN'), drop: float = 0.) -> None:
        super().__init__()
        kernels = [focal_window + focal_factor * level for level in range(focal_level)]
        for level, kernel in enumerate(kernels, 1):
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(
                    f'FocalNet: focal_windows={focal_window} with focal_factor={focal_factor} '
                    f'makes kernel {kernel} at level {level}; kernels are odd: take an odd window '
                    'and an even factor')
        if variant not in self.variants:
            raise ValueError(f'FocalNet: unknown modulation {variant!r}; '
                             f'choose from {", ".join(self.variants)}')
        if focal_level < (variant in ('no_global', 'top_only')):
            raise ValueError(f'FocalNet: modulation {variant!r} has nothing to gather at '
                             f'focal_levels={focal_level}; give 1 or more')
        self.dim = dim
        self.focal_level = focal_level
        self.variant = variant
        self.normalize_modulator = normalize_modulator
        self.keep_maps = False

        self.f = nn.Linear(dim, 2 * dim + focal_level + 1)
        self.h = nn.Conv2d(dim, dim, 1)
        self.act = build_activation_layer(act_cfg)
        if variant == 'pooling':
            self.focal_layers = nn.ModuleList(
                nn.AvgPool2d(k, 1, k // 2, count_include_pad=False) for k in kernels)
        else:
            self.focal_layers = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False),
                    build_activation_layer(act_cfg)) for k in kernels)
        self.ln = build_norm_layer(norm_cfg, dim)[1] if use_postln else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        parts = (self.dim, self.dim, self.focal_level + 1)
        plain = not is_graph() and is_plain(self.f, self.h)
        if plain:
            # Three products: the convolutions get a map of its own, not one to copy first.
            query, context, gates = (linear(x, *part) for part in zip(
                self.f.weight.split(parts), self.f.bias.split(parts)))
        else:
            query, context, gates = self.f(x).split(parts, -1)
        if self.variant == 'no_gating':
            gates = torch.ones_like(gates)
        context, gates_map = context.permute(0, 3, 1, 2), gates.permute(0, 3, 1, 2)
        if self.variant == 'convnet':
            context = convolve_patches(self.h, self.contextualize(context)[-2])
            context = self.act(context).permute(0, 2, 3, 1)
            out = F.linear(context, self.f.weight[:self.dim], self.f.bias[:self.dim])
        else:
            context = self.gather(context, gates_map)
            if plain:
                modulator = linear(context.permute(0, 2, 3, 1), self.h.weight.flatten(1), self.h.bias)
            else:
                modulator = convolve_patches(self.h, context).permute(0, 2, 3, 1)
            out = query + modulator if self.variant == 'additive' else query * modulator
            if self.keep_maps:
                self.gates, self.modulator = gates.detach(), modulator.detach()
        return self.proj_drop(project(self.proj, self.ln(out)))

    def gather(self, context: Tensor, gates: Tensor) -> Tensor:
        """Steps 1 and 2: at once where nothing speaks against it, else as the paper has them.

        Args:
            context (Tensor): z^0, shape (N, C, H, W).
            gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        if (self.variant not in ('focal', 'additive', 'no_gating') or not is_gelu(self.act)
                or is_graph()
                or not is_plain(*(layer[0] for layer in self.focal_layers))):
            return self.aggregate(self.contextualize(context), gates)
        tensors = autocast(context, gates, *(layer[0].weight for layer in self.focal_layers))
        compute = GatedContext.apply if wants_grad(*tensors) else GatedContext.compute
        context = compute(*tensors)
        return context / (self.focal_level + 1) if self.normalize_modulator else context

    def contextualize(self, context: Tensor) -> list[Tensor]:
        """Step 1, hierarchical contextualization (Eq. 4).

        Args:
            context (Tensor): z^0, shape (N, C, H, W).

        Returns:
            list[Tensor]: z^0 to z^L, shape (N, C, H, W), and z^(L+1), shape (N, C, 1, 1).
        """
        levels = [context]
        for layer in self.focal_layers:
            if self.variant == 'pooling' or not is_plain(layer[0]):
                levels.append(layer(levels[-1]))
            else:
                levels.append(layer[1](depthwise_conv2d(levels[-1], layer[0].weight)))
        whole = levels[-1].mean((2, 3), keepdim=True)
        return [*levels, whole if self.variant == 'pooling' else self.act(whole)]

    def aggregate(self, levels: list[Tensor], gates: Tensor) -> Tensor:
        """Step 2, gated aggregation (Eq. 5).

        Args:
            levels (list[Tensor]): z^0 to z^(L+1), as :meth:`contextualize` gives them.
            gates (Tensor): g^1 to g^(L+1), shape (N, L + 1, H, W).

        Returns:
            Tensor: Shape (N, C, H, W).
        """
        first = self.focal_level if self.variant == 'top_only' else 1
        last = self.focal_level + (self.variant not in ('top_only', 'no_global'))
        context = sum(levels[i] * gates[:, i - 1:i] for i in range(first, last + 1))
        return context / (self.focal_level + 1) if self.normalize_modulator else context

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Zero-pads or crops kernels, adds or removes focal levels; see
        :mod:`focal_mm.weights.resize`. An added level keeps the kernel it was initialised with.

        Raises:
            CheckpointError: If a kernel in the checkpoint is even.
        """
        weight = state_dict.get(f'{prefix}f.weight')
        levels = self.focal_level
        if weight is not None and weight.shape[1:] == (self.dim, ):
            levels = len(weight) - 2 * self.dim - 1
        if levels != self.focal_level and levels >= 0:
            for name in ('f.weight', 'f.bias'):
                if prefix + name in state_dict:
                    state_dict[prefix + name] = fit_gates(
                        state_dict[prefix + name], self.dim, self.focal_level)
            what = 'added, gates at zero' if self.focal_level > levels else 'removed'
            self.changes['focal level', what] += abs(self.focal_level - levels)

        own = self.focal_layers.state_dict(prefix=f'{prefix}focal_layers.')
        for level in range(max(levels, self.focal_level)):
            key = f'{prefix}focal_layers.{level}.0.weight'
            if key not in own:
                state_dict.pop(key, None)
            elif level >= levels:
                state_dict.setdefault(key, own[key])
            elif key in state_dict:
                state_dict[key] = self._fit_kernel(key, state_dict[key], own[key].shape[-1])

    def _fit_kernel(self, key: str, weight: Tensor, size: int) -> Tensor:
        theirs = weight.shape[-1]
        if theirs == size:
            return weight
        if theirs % 2 == 0:
            raise CheckpointError(f'{key} is a {theirs}x{theirs} kernel; focal kernels are odd, '
                                  'so this is no FocalNet checkpoint')
        what = 'zero-padded' if theirs < size else 'cropped'
        self.changes['kernel', f'{what} {theirs}x{theirs} -> {size}x{size}'] += 1
        return fit_kernel(weight, size)


class FocalNetBlock(BaseModule):
    """Focal modulation and an MLP, each with a norm and a shortcut.

    Args:
        dim (int): Channels C.
        modulation (dict): Arguments of :class:`FocalModulation` but ``dim``.
        mlp_ratio (float): Hidden channels of the MLP, as a multiple of C. Default: 4.
        drop (float): Dropout rate in the MLP. Default: 0.
        drop_path (float): Rate of stochastic depth. Default: 0.
        layer_scale_init_value (float or None): A learned scale a channel on both branches, and
            what it starts at. None: none. Default: None.
        use_postln (bool): Norms after the branches instead of before. Default: False.
        act_cfg (dict): Activation. Default: GELU.
        norm_cfg (dict): Norms. Default: LN.
    """

    def __init__(self, dim: int, modulation: dict, mlp_ratio: float = 4., drop: float = 0.,
                 drop_path: float = 0., layer_scale_init_value: float | None = None,
                 use_postln: bool = False, act_cfg: dict = dict(type='GELU'),
                 norm_cfg: dict = dict(type='LN')) -> None:
        super().__init__()
        self.use_postln = use_postln
        self.norm1 = build_norm_layer(norm_cfg, dim)[1]
        self.modulation = FocalModulation(dim, **modulation)
        self.norm2 = build_norm_layer(norm_cfg, dim)[1]
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_cfg, drop)
        self.drop_path = DropPath(drop_path)
        for name in ('gamma_1', 'gamma_2'):
            gamma = None
            if layer_scale_init_value is not None:
                gamma = nn.Parameter(torch.full((dim, ), float(layer_scale_init_value)))
            self.register_parameter(name, gamma)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = self._add(x, self.modulation, self.norm1, self.gamma_1)
        return self._add(x, self.mlp, self.norm2, self.gamma_2)

    @torch.no_grad()
    def fold_scales(self) -> None:
        """See :meth:`FocalNet.fold_scales`."""
        last = (self.norm1, self.norm2) if self.use_postln else (self.modulation.proj, self.mlp.fc2)
        for name, layer in zip(('gamma_1', 'gamma_2'), last):
            gamma = getattr(self, name)
            if gamma is not None:
                layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
                layer.bias.mul_(gamma)
                setattr(self, name, None)
        if self.modulation.normalize_modulator and self.modulation.variant != 'convnet':
            self.modulation.h.weight.div_(self.modulation.focal_level + 1)
            self.modulation.normalize_modulator = False

    def _add(self, x: Tensor, branch: nn.Module, norm: nn.Module, gamma: Tensor | None) -> Tensor:
        out = norm(branch(x)) if self.use_postln else branch(norm(x))
        return x + self.drop_path(out if gamma is None else gamma * out)


def _arch(embed_dims: int, depths: tuple[int, ...], focal_levels: int, focal_windows: int = 3,
          patch_size: int = 4, large: bool = False, **flags) -> dict:
    """``large`` is how the authors stabilise big models: overlapped patches, post-norm, scale."""
    return dict(dict(embed_dims=embed_dims, depths=depths, focal_levels=focal_levels,
                     focal_windows=focal_windows, patch_size=patch_size, use_conv_embed=large,
                     layer_scale_init_value=1e-4 if large else None, use_postln=large,
                     use_postln_in_modulation=False, normalize_modulator=False), **flags)


@MODELS.register_module()
class FocalNet(StagedBackbone):
    """FocalNet, section 3.4.

    Parameters have the names of the official code, so that its checkpoints load as they are;
    kernels and focal levels are fitted to the model (:meth:`FocalModulation.fit_state_dict`).

    Args:
        arch (str or dict): A name below, or the settings themselves (``embed_dims`` and ``depths``
            at least). Default: ``'tiny_lrf'``.

            - ``tiny``, ``small``, ``base`` with ``_srf`` (2 focal levels) or ``_lrf`` (3): Table 1.
            - the same with ``_deep``, deeper and thinner: Table 3.
            - ``tiny_iso``, ``small_iso``, ``base_iso``, monolithic, patches of 16: Table 13.
            - ``large_srf``, FocalNet-L of Table 4.
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
        modulation (str): ``'focal'``, or an ablation of Tables 10 and 11, see
            :class:`FocalModulation`. Table 12 is ``focal_levels`` and ``focal_windows``.
        use_conv_embed (bool, optional): Overlapped patch embedding, Table 2. The official
            classifier pads its 7x7 stem by 2 pixels, the official detector (here: ``out_norm``)
            by 3; each is followed.
        layer_scale_init_value (float, None or 'arch'): Start of the learned scale on each branch.
            None: no scale. Default: ``'arch'``, as the arch has it.
        use_postln (bool, optional): Norms after the branches.
        use_postln_in_modulation (bool, optional): A norm within the modulation.
        normalize_modulator (bool, optional): Divides the gathered context by L + 1.
        in_channels (int): Channels of the image. Default: 3.
        patch_size (int, optional): Side of a patch in pixels.
        mlp_ratio (float): Hidden channels of the MLPs, as a multiple. Default: 4.
        drop_rate (float): Dropout rate. Default: 0.
        drop_path_rate (float): Stochastic depth of the last block, from 0 at the first one on.
            Default: 0.
        norm_cfg (dict): Norms. Default: LN with eps 1e-5.
        act_cfg (dict): Activations. Default: GELU.
        out_indices (Sequence[int], optional): Stages whose maps are returned. Default: all.
        out_norm (bool): Whether each map passes a norm of its own, ``norm{i}``, as in the official
            detectors. False: the raw maps, as in the classifier. Default: True.
        frozen_stages (int): -1: none; 0: the patch embedding; n: and the first n stages.
            Default: -1.
        with_cp (bool): Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg (dict or list, optional): Initialisation. Default: linear layers from a normal
            distribution truncated at 2, std 0.02.

    Raises:
        ValueError: For an unknown arch or modulation, sizes that do not match the stages, or an
            even kernel.
    """

    archs: dict[str, dict] = {
        'tiny_lrf': _arch(96, (2, 2, 6, 2), 3),
        'tiny_srf': _arch(96, (2, 2, 6, 2), 2),
        'small_srf': _arch(96, (2, 2, 18, 2), 2),
        'small_lrf': _arch(96, (2, 2, 18, 2), 3),
        'base_srf': _arch(128, (2, 2, 18, 2), 2),
        'base_lrf': _arch(128, (2, 2, 18, 2), 3),
        # Table 3's parameters are those of overlapped patches.
        'tiny_srf_deep': _arch(64, (3, 3, 16, 3), 2, use_conv_embed=True),
        'tiny_lrf_deep': _arch(64, (3, 3, 16, 3), 3, use_conv_embed=True),
        'small_srf_deep': _arch(64, (4, 4, 28, 4), 2, use_conv_embed=True),
        'small_lrf_deep': _arch(64, (4, 4, 28, 4), 3, use_conv_embed=True),
        'base_srf_deep': _arch(96, (4, 4, 28, 4), 2, use_conv_embed=True),
        'base_lrf_deep': _arch(96, (4, 4, 28, 4), 3, use_conv_embed=True),
        'tiny_iso': _arch(192, (12, ), 3, patch_size=16),
        'small_iso': _arch(384, (12, ), 3, patch_size=16),
        # The official builder of this one sets both flags, its yaml neither.
        'base_iso': _arch(768, (12, ), 3, patch_size=16, layer_scale_init_value=1e-4,
                          use_postln=True),
        'large_srf': _arch(192, (2, 2, 18, 2), 2),
        'large_fl3': _arch(192, (2, 2, 18, 2), 3, 5, large=True),
        'large_fl4': _arch(192, (2, 2, 18, 2), 4, large=True, normalize_modulator=True),
        'xlarge_fl3': _arch(256, (2, 2, 18, 2), 3, 5, large=True),
        'xlarge_fl4': _arch(256, (2, 2, 18, 2), 4, large=True),
        'huge_fl3': _arch(352, (2, 2, 18, 2), 3, large=True, use_postln_in_modulation=True),
        'huge_fl4': _arch(352, (2, 2, 18, 2), 4, large=True, use_postln_in_modulation=True),
    }

    def __init__(self,
                 arch: str | dict = 'tiny_lrf',
                 embed_dims: int | None = None,
                 depths: int | Sequence[int] | None = None,
                 focal_levels: int | Sequence[int] | None = None,
                 focal_windows: int | Sequence[int] | None = None,
                 focal_factor: int = 2,
                 modulation: str = 'focal',
                 use_conv_embed: bool | None = None,
                 layer_scale_init_value: float | str | None = 'arch',
                 use_postln: bool | None = None,
                 use_postln_in_modulation: bool | None = None,
                 normalize_modulator: bool | None = None,
                 in_channels: int = 3,
                 patch_size: int | None = None,
                 mlp_ratio: float = 4.,
                 drop_rate: float = 0.,
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
            'FocalNet', self.archs, arch, embed_dims=embed_dims, depths=depths,
            focal_levels=focal_levels, focal_windows=focal_windows, patch_size=patch_size,
            use_conv_embed=use_conv_embed, use_postln=use_postln,
            use_postln_in_modulation=use_postln_in_modulation,
            normalize_modulator=normalize_modulator)
        if layer_scale_init_value != 'arch':
            sizes['layer_scale_init_value'] = layer_scale_init_value
        depths = sizes['depths']
        count = len(depths)
        levels = per_stage('FocalNet', 'focal_levels', sizes['focal_levels'], count)
        windows = per_stage('FocalNet', 'focal_windows', sizes['focal_windows'], count)
        dims = [sizes['embed_dims'] * 2**i for i in range(count)]
        stem_overlap, overlap = (3 if out_norm else 2, 1) if sizes['use_conv_embed'] else (None, ) * 2
        drop_paths = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())

        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                FocalNetBlock(
                    dim,
                    modulation=dict(
                        focal_level=levels[i], focal_window=windows[i], focal_factor=focal_factor,
                        variant=modulation, use_postln=sizes['use_postln_in_modulation'],
                        normalize_modulator=sizes['normalize_modulator'], act_cfg=act_cfg,
                        norm_cfg=norm_cfg, drop=drop_rate),
                    mlp_ratio=mlp_ratio, drop=drop_rate, drop_path=next(drop_paths),
                    layer_scale_init_value=sizes['layer_scale_init_value'],
                    use_postln=sizes['use_postln'], act_cfg=act_cfg, norm_cfg=norm_cfg)
                for _ in range(depths[i])
            ]
            down = PatchEmbed(dim, 2 * dim, 2, overlap, norm_cfg) if i < count - 1 else None
            stages.append(Stage(blocks, down, with_cp))
        super().__init__(
            PatchEmbed(in_channels, dims[0], sizes['patch_size'], stem_overlap, norm_cfg), stages,
            dims, drop_rate, out_indices, out_norm, norm_cfg, frozen_stages, init_cfg)

    def fold_scales(self) -> 'FocalNet':
        """For inference: the learned scales on the branches and the division of the gathered
        context become part of the layers beside them. The maps stay the same to 1e-5. Of the archs
        with a name only ``large`` to ``huge`` and ``base_iso`` have something to fold.

        Checkpoints come first, since a folded network has other parameters. A second call changes
        nothing.

        Returns:
            FocalNet: Itself.

        Raises:
            RuntimeError: In training mode.
        """
        if self.training:
            raise RuntimeError('FocalNet.fold_scales: the network is in training mode; '
                               'call eval() first')
        for stage in self.layers:
            for block in stage.blocks:
                block.fold_scales()
        return self
