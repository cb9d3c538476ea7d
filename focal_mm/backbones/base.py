"""Parts that the families share: arguments, patch embedding, MLP, stages, and the backbone.

Inside a backbone a map is (N, H, W, C): the linear layers and norms act on the last axis, and a
convolution sees the same memory as a channels-last (N, C, H, W).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..kernels.dispatch import cached, can_fuse, record_choice
from ..kernels.linear import PatchConv2d, mlp
from ..kernels.window_plans import pad_to_multiple
from ..weights.loading import (
    CheckpointError,
    FittedBackbone,
    FittedModule,
    describe_prefixes,
    initial_state,
    plain_name,
)

# Parts of Hugging Face's model for masked-image pre-training that a backbone does not have.
MASKED_IMAGE = ('decoder', 'mask_token')


def resolve_arch(
    family: str, archs: dict[str, dict], arch: str | dict | None, **given: Any
) -> dict[str, Any]:
    """Return the settings of an arch, overridden by the settings given beside it.

    Args:
        family (str): Name of the backbone, for the errors.
        archs (dict): Name to settings. Every arch has the same keys.
        arch (str, dict or None): A name, or the settings themselves. Settings that a dict lacks
            come from the first arch, except ``embed_dims`` and ``depths``, which are required.
            None: an empty dict.
        given: Settings that override the arch's; None leaves the arch's own.

    Returns:
        dict: Settings.

    Raises:
        ValueError: For an unknown name (similar names are listed), an unknown setting, or a
            missing one.
    """
    first = next(iter(archs.values()))
    if isinstance(arch, str):
        if arch not in archs:
            near = get_close_matches(arch, archs, n=3, cutoff=0.5)
            hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
            raise ValueError(f'{family}: unknown arch {arch!r}; {hint}Known: {", ".join(archs)}')
        arch = archs[arch]
    arch = arch or {}
    for key in arch:
        if key not in first:
            raise ValueError(f'{family}: unknown key {key!r} in arch; known: {", ".join(first)}')
    for key in ('embed_dims', 'depths'):
        if key not in arch and given.get(key) is None:
            raise ValueError(f'{family}: arch lacks {key!r}; known keys: {", ".join(first)}')
    settings = {**first, **arch}
    settings.update((key, value) for key, value in given.items() if value is not None)
    if isinstance(settings['depths'], int):
        own = {**first, **arch}['depths']
        settings['depths'] = (settings['depths'],) * (4 if isinstance(own, int) else len(own))
    return settings


def per_stage(family: str, name: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """Return one value for each stage; an int is repeated for all stages.

    Raises:
        ValueError: If there are more or fewer values than stages.
    """
    if isinstance(value, int):
        return (value,) * stages
    if len(value) != stages:
        raise ValueError(
            f'{family}: {name}={tuple(value)} has {len(value)} values for {stages} stages; '
            f'give {stages} values, or one int for all'
        )
    return tuple(value)


@cached(maxsize=64)
def relative_index(window_size: int, region: int, device: torch.device) -> Tensor:
    """Return the index, in a table of (window_size + region - 1)^2 biases, of the bias between each
    query in a window and each key in a region, both counted row by row: shape (window_size^2,
    region^2).
    """
    side = window_size + region - 1
    query = torch.arange(window_size, device=device)[:, None]
    offset = query - torch.arange(region, device=device) + region - 1
    index = offset[:, None, :, None] * side + offset[:, None, :]
    return index.flatten(2).flatten(0, 1)


def fix_statistics(module: nn.Module) -> None:
    """Put every BatchNorm within a module into eval mode, as ``norm_eval`` asks."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a module's BatchNorms unchanged in training mode."""
    norms = [
        (child, child.momentum, child.num_batches_tracked)
        for child in module.modules()
        if isinstance(child, _BatchNorm)
    ]
    for norm, *_ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


class Mlp(BaseModule):
    """Two linear layers with an activation between them, on the last axis.

    Args:
        dim (int): Channels in and out.
        hidden_dim (int): Channels between the two layers.
        act_cfg (dict): The activation. Default: GELU.
        drop (float): Dropout rate after each linear layer. Default: 0.
    """

    def __init__(
        self, dim: int, hidden_dim: int, act_cfg: dict = dict(type='GELU'), drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        fc1, act, fc2, drop = self.fc1, self.act, self.fc2, self.drop
        if can_fuse((fc1, nn.Linear), (act, nn.GELU), (fc2, nn.Linear), (drop, nn.Dropout)):
            return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return drop(fc2(drop(act(fc1(x)))))


class PatchEmbed(FittedModule):
    """Patch embedding: the stem, and the step between two stages.

    The map is zero-padded at the right and at the bottom to a multiple of the patch.

    Args:
        in_channels (int): Channels in.
        embed_dims (int): Channels out.
        patch_size (int): Side p of a patch, and the stride, in pixels.
        overlap (int or None): None: a patch sees only its own pixels. An int: the convolution is
            overlapped (FocalNet, Table 2), with kernels of 2p - 1 (7 for p = 4, 3 for p = 2), and
            this is its padding in pixels.
        norm_cfg (dict or None): The norm after the convolution. None: none.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        patch_size: int,
        overlap: int | None = None,
        norm_cfg: dict | None = dict(type='LN'),
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj: nn.Conv2d
        if overlap is None:
            self.proj = PatchConv2d(in_channels, embed_dims, patch_size)
        else:
            kernel_size = 2 * patch_size - 1
            self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, patch_size, overlap)
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1] if norm_cfg else nn.Identity()

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Check that the checkpoint has kernels of this size; overlapped and plain kernels see
        different pixels.

        Raises:
            CheckpointError: If it has the other kind.
        """
        key = f'{prefix}proj.weight'
        if key in state_dict and state_dict[key].shape[2:] != self.proj.weight.shape[2:]:
            theirs, ours = state_dict[key].shape[2], self.proj.kernel_size[0]
            raise CheckpointError(
                f'{key} has {theirs}x{theirs} kernels, the model {ours}x{ours}: plain and '
                'overlapped patch embedding (or two patch sizes) do not mix; build the model with '
                f'use_conv_embed={theirs > ours}, or with the patch_size of the checkpoint'
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / p), ceil(W / p), embed_dims)."""
        x = pad_to_multiple(x, self.patch_size, channels_first=True)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ScaledBlock(BaseModule):
    """Base of blocks whose two branches have stochastic depth and, optionally, a learned scale for
    each channel.

    Args:
        dim (int): Channels C.
        drop_path (float): Rate of stochastic depth.
        layer_scale_init_value (float or None): Initial value of the scales. None: no scales.
    """

    def __init__(self, dim: int, drop_path: float, layer_scale_init_value: float | None) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        for name in ('gamma_1', 'gamma_2'):
            gamma = None
            if layer_scale_init_value is not None:
                gamma = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            self.register_parameter(name, gamma)

    def add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        """Add a branch to its shortcut."""
        return x + self.drop_path(branch if gamma is None else gamma * branch)


class Stage(FittedModule):
    """Blocks at one resolution, and the step down to the next.

    Args:
        blocks (Sequence[nn.Module]): Each maps (N, H, W, C) to the same shape.
        downsample (nn.Module or None): Maps (N, C, H, W) to (N, H', W', C').
        with_cp (bool): Recomputes each block in the backward pass to save memory. Default: False.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], downsample: nn.Module | None, with_cp: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C), before the step down."""
        for block in self.blocks:
            x = self.recompute(block, x) if self.with_cp and x.requires_grad else block(x)
        return x

    def recompute(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run a block whose results are computed again in the backward pass."""
        if torch.compiler.is_compiling():  # torch.compile updates BatchNorm statistics only once
            return checkpoint(block, x, use_reentrant=False)
        choice = record_choice()

        @contextmanager
        def recomputation() -> Iterator[None]:
            # Kernels store what they stored before; BatchNorm statistics are not updated twice.
            with choice(), _kept_statistics(block):
                yield

        return checkpoint(
            block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputation())
        )


class StagedBackbone(BaseModule, FittedBackbone):
    """Patch embedding and stages, with one map returned from each stage in ``out_indices``.

    The families share these arguments (``attn_drop_rate`` and ``mlp_act_cfg`` where noted):

    - ``in_channels`` (int): Channels of the image. Default: 3.
    - ``patch_size`` (int): Side of a patch in pixels, the stride of the first map. Default: 4.
    - ``mlp_ratio`` (float): Hidden channels of the MLPs, as a multiple. Default: 4.
    - ``drop_rate`` (float): Dropout rate of layers. Default: 0.
    - ``attn_drop_rate`` (float): Dropout rate of attention weights; Focal Transformer and
      MixFormer. Default: 0.
    - ``drop_path_rate`` (float): Stochastic depth of the last block; it grows linearly from 0 at
      the first block. Default: 0; in MixFormer, the rate of the arch.
    - ``norm_cfg`` (dict): Norms over channels. Default: LN with eps 1e-5.
    - ``act_cfg`` (dict): Activations. Default: GELU.
    - ``mlp_act_cfg`` (dict, optional): Activations of the MLPs alone; FocalNet and MixFormer.
      Default: ``act_cfg``.
    - ``out_indices`` (Sequence[int], optional): Stages whose maps are returned. Default: all.
    - ``out_norm`` (bool): Whether each map passes a norm of its own, ``norm{i}``, as in the
      official detectors. False: the raw maps, as in the classifiers. Default: True.
    - ``frozen_stages`` (int): -1: none; 0: the patch embedding; n: the patch embedding and the
      first n stages. Default: -1.
    - ``with_cp`` (bool): Recomputes blocks in the backward pass to save memory. Default: False.
    - ``init_cfg`` (dict or list, optional): Initialization. Default: linear layers from a truncated
      normal distribution with std 0.02; MixFormer's convolutions by Kaiming's method.

    Args:
        patch_embed (nn.Module): Maps (N, in_channels, H, W) to (N, H', W', C).
        stages (Sequence[Stage]): The stages; all but the last have a step down.
        dims (Sequence[int]): Channels of each stage.
        drop_rate (float): Dropout rate after the patch embedding.
        out_indices (Sequence[int] or None): Stages whose maps are returned. None: all.
        out_norm (bool): Whether each output passes a norm of its own, ``norm{i}``.
        norm_cfg (dict): The output norms.
        frozen_stages (int): -1: nothing is frozen. n >= 0: the patch embedding and the first n
            stages, with their output norms, keep their weights and stay in eval mode.
        init_cfg (dict or list): Initialization, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``out_indices`` or ``frozen_stages`` name a stage that is not there.
    """

    # Parts of the published classifier that a backbone does not have.
    classifier: tuple[str, ...] = ('norm', 'head')

    def __init__(
        self,
        patch_embed: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        drop_rate: float,
        out_indices: Sequence[int] | None,
        out_norm: bool,
        norm_cfg: dict,
        frozen_stages: int,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)  # type: ignore[call-arg]  # of BaseModule
        count, family = len(stages), type(self).__name__
        self.out_indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(range(count)):
            raise ValueError(
                f'{family}: out_indices={self.out_indices} for {count} stages; '
                f'choose from 0 to {count - 1}'
            )
        if not -1 <= frozen_stages <= count:
            raise ValueError(
                f'{family}: frozen_stages={frozen_stages} for {count} stages; '
                f'choose from -1 (none) to {count} (all)'
            )
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.patch_embed: Any = patch_embed
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers: Any = nn.ModuleList(stages)  # Any: ModuleList does not keep the type Stage
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', build_norm_layer(norm_cfg, dims[i])[1])
        self.record_names()
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W), any H, W >= 1 -> maps of ``out_indices``, each
        (N, C_i, ceil(H / s_i), ceil(W / s_i)) with s_i = patch_size * 2**i.
        """
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x) if self.out_norm else x
                outs.append(out.permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x.permute(0, 3, 1, 2))
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialize the weights as ``init_cfg`` says.

        Raises:
            CheckpointError: If its checkpoint does not belong here, or has nothing behind
                ``prefix``.
        """
        init_cfg: Any = self.init_cfg
        cfgs = init_cfg if isinstance(init_cfg, list) else [init_cfg]
        prefixed = [cfg for cfg in cfgs if cfg and cfg.get('prefix')]
        for cfg in prefixed:
            cfg['prefix'] = plain_name(cfg['prefix']) or None  # as the names of the file are read
        try:
            super().init_weights()
        except AssertionError as error:  # of mmengine, which names no file
            for cfg in prefixed:
                if not str(error).startswith(str(cfg['prefix'])):
                    continue
                content = CheckpointLoader.load_checkpoint(cfg['checkpoint'], 'cpu')
                hint = describe_prefixes(
                    content.get('state_dict', content), 'patch_embed.proj.weight'
                )
                raise CheckpointError(
                    f'{cfg["checkpoint"]}: no key begins with prefix={cfg["prefix"]!r}{hint}'
                ) from None
            raise

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode as :meth:`torch.nn.Module.train`; frozen parts stay in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        norms = [getattr(self, f'norm{i}', None) for i in range(self.frozen_stages)]
        for module in (self.patch_embed, *self.layers[: self.frozen_stages], *norms):
            if module is not None:
                module.eval().requires_grad_(False)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Rename each part of a published classifier for its place in an ``ImageClassifier``.
        mmpretrain looks for this method by name and calls it before such a model loads a state
        dict.
        """
        if f'{prefix}patch_embed.proj.weight' not in state_dict:
            return
        last = f'backbone.norm{self.out_indices[-1]}' if self.out_norm else 'head.norm'
        places = dict(norm=last, last_proj='head.last_proj', head='head.fc')
        for key in [key for key in state_dict if key.startswith(prefix)]:
            part, _, name = key[len(prefix) :].partition('.')
            place = places[part] if part in self.classifier else f'backbone.{part}'
            state_dict[f'{prefix}{place}.{name}'] = state_dict.pop(key)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Leave out the classifier's head and norms of stages that are not returned; keep output
        norms that the checkpoint lacks as they were initialized.
        """
        absent = [f'norm{i}' for i in range(len(self.layers)) if not hasattr(self, f'norm{i}')]
        left_out = set()
        own = self.state_dict(prefix=prefix)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            plain = prefix + key[len(prefix) :].replace('_orig_mod.', '')
            if key not in own and plain in own:  # a part of the net was compiled
                state_dict[plain] = state_dict.pop(key)
                continue
            part = key[len(prefix) :].split('.')[0]
            if part in self.classifier:
                self.changes['tensor', 'of the classifier left out'] += 1
            elif part in MASKED_IMAGE:
                self.changes['tensor', 'of masked-image pre-training left out'] += 1
            elif part in absent:
                left_out.add(part)
            else:
                continue
            del state_dict[key]
        if left_out:
            what = f'of the checkpoint left out: {", ".join(sorted(left_out))}'
            self.changes['output norm', what] += len(left_out)
        stem = state_dict.get(f'{prefix}patch_embed.proj.weight')
        if stem is None or not self.out_norm:
            return
        for i in self.out_indices:
            norm = initial_state(getattr(self, f'norm{i}'), f'{prefix}norm{i}.', stem.device)
            if norm.keys().isdisjoint(state_dict):
                state_dict.update(norm)
                self.changes['output norm', 'not in the checkpoint, left as initialized'] += 1
