"""Parts that the families share: norms, patch embedding, MLP, stages, and the backbone.

Inside a backbone a map is (N, H, W, C): the linear layers and norms act on the last axis, and a
convolution sees the same memory as a channels-last (N, C, H, W).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.checkpoint import checkpoint

from ..kernels.dispatch import can_fuse, fused_module, is_graph, record_choice
from ..kernels.linear import PatchConv2d, mlp
from ..kernels.map_conv import MapConv2d
from ..kernels.memory import reuse_memory
from ..kernels.window_plans import pad_to_multiple
from ..weights.loading import (
    CheckpointError,
    FittedBackbone,
    FittedModule,
    describe_prefixes,
    initial_state,
    plain_name,
)
from ..weights.resize import fit_image_channels
from .arguments import stage_indices

fused_module(DropPath)
# Parts of Hugging Face's model for masked-image pre-training that a backbone does not have.
MASKED_IMAGE = ('decoder', 'mask_token')


class MapNorm(BaseModule):
    """A norm that takes maps (N, C, H, W), such as BatchNorm, on maps (N, H, W, C).

    Args:
        norm (nn.Module): The norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def build_norm(norm_cfg: dict, dim: int) -> nn.Module:
    """Build a norm for maps (N, H, W, C).

    Args:
        norm_cfg (dict): LN and others over the last axis; LN2d, which is the same; or BN, SyncBN,
            GN and IN, which get the map as (N, C, H, W).
        dim (int): Channels C.

    Raises:
        ValueError: If there is no such norm, or it does not take maps.
    """
    if not isinstance(norm_cfg, dict):
        raise ValueError(f"norm_cfg={norm_cfg!r}; give a dict, such as dict(type='LN')")
    kind = norm_cfg.get('type')
    if getattr(kind, '__name__', str(kind)).split('.')[-1] in ('LN2d', 'LayerNorm2d'):
        norm_cfg = dict(norm_cfg, type='LN')
    try:
        norm = build_norm_layer(norm_cfg, dim)[1]
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f'norm_cfg={norm_cfg} for {dim} channels: {error or "an argument is missing"}; give '
            'LN, LN2d, BN, SyncBN, IN, or GN with num_groups that divide the channels'
        ) from error
    if isinstance(norm, (_BatchNorm, _InstanceNorm)):
        if type(norm).__name__[-2:] in ('1d', '3d'):
            raise ValueError(
                f'norm_cfg={norm_cfg}: maps have two dimensions; give {type(norm).__name__[:-2]}2d'
            )
        return MapNorm(norm)
    return MapNorm(norm) if isinstance(norm, nn.GroupNorm) else norm


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


def recompute(function: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a function whose results are computed again in the backward pass, to save memory.

    Args:
        function (Callable): The module, or its forward.
        module (nn.Module): The module that computes. Its BatchNorms count once.
        args: Arguments of the function.
        kwargs: Further arguments of the function.
    """
    if torch.compiler.is_compiling():  # torch.compile updates BatchNorm statistics only once
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    choice = record_choice()

    @contextmanager
    def again() -> Iterator[None]:
        # Kernels store what they stored before; BatchNorm statistics are not updated twice.
        with choice(), _kept_statistics(module):
            yield

    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), again()),
        **kwargs,
    )


class _Tie(torch.autograd.Function):
    """Return the first tensor; the others are in its graph, but get no gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *others: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: Tensor | None) -> Tensor:
        return tangent.view_as(tangent)


def tie_maps(maps: Sequence[Tensor], net: nn.Module) -> tuple[Tensor, ...]:
    """Put all parameters of a network into the graph of each of its maps, at no cost.

    DistributedDataParallel waits for every parameter of the network that the graph does not reach:
    an output norm whose map no neck or head reads, or the stages after the last map that is read.
    Values and gradients stay the same to the bit.

    Args:
        maps (Sequence[Tensor]): Outputs of the network.
        net (nn.Module): The network. Nothing is changed in eval mode, without gradients, and in a
            graph, which reaches all parameters by itself.
    """
    if not net.training or not torch.is_grad_enabled() or is_graph():
        return tuple(maps)
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return tuple(_Tie.apply(map_, *learned) for map_ in maps)


@fused_module
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
        if can_fuse(*self.parts()):
            return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return drop(fc2(drop(act(fc1(x)))))

    def parts(self) -> tuple[tuple[nn.Module, type], ...]:
        """Return its layers with the classes that a kernel stands for."""
        kinds = nn.Linear, nn.GELU, nn.Linear, nn.Dropout
        return tuple(zip((self.fc1, self.act, self.fc2, self.drop), kinds, strict=True))


def norm_mlp(norm: nn.Module, layers: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm and an MLP to the last axis, by one kernel unless one of them has been replaced.

    Args:
        norm (nn.Module): ``nn.LayerNorm``, or a module in its place.
        layers (nn.Module): :class:`Mlp`, or a module in its place.
        x (Tensor): Shape (..., C).

    Returns:
        Tensor: Shape (..., C).
    """
    if (
        isinstance(norm, nn.LayerNorm)
        and norm.elementwise_affine
        and isinstance(layers, Mlp)
        and can_fuse((norm, nn.LayerNorm), (layers, Mlp), *layers.parts())
    ):
        weights = layers.fc1.weight, layers.fc1.bias, layers.fc2.weight, layers.fc2.bias
        return mlp(x, *weights, norm.weight, norm.bias, norm.eps)
    return layers(norm(x))


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
            self.proj = MapConv2d(in_channels, embed_dims, kernel_size, patch_size, overlap)
        self.norm = build_norm(norm_cfg, embed_dims) if norm_cfg else nn.Identity()

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
            x = recompute(block, block, x) if self.with_cp and x.requires_grad else block(x)
        return x


class StagedBackbone(BaseModule, FittedBackbone):
    """Patch embedding and stages, with one map returned from each stage in ``out_indices``.

    The families share these arguments (``attn_drop_rate`` and ``mlp_act_cfg`` where noted):

    - ``in_channels`` (int): Channels of the image. Default: 3.
    - ``adapt_in_channels`` (bool): Lets a checkpoint of images with other channels load: for one
      channel the weights of the three are summed, for each further channel their mean is appended.
      False: such a checkpoint is refused. Default: False.
    - ``patch_size`` (int): Side of a patch in pixels, the stride of the first map. Default: 4.
    - ``mlp_ratio`` (float): Hidden channels of the MLPs, as a multiple. Default: 4.
    - ``drop_rate`` (float): Dropout rate of layers. Default: 0.
    - ``attn_drop_rate`` (float): Dropout rate of attention weights; Focal Transformer and
      MixFormer. Default: 0.
    - ``drop_path_rate`` (float): Stochastic depth of the last block; it grows linearly from 0 at
      the first block. Default: 0; in MixFormer, the rate of the arch.
    - ``norm_cfg`` (dict): Norms over channels, see :func:`build_norm`. Default: LN with eps 1e-5.
    - ``act_cfg`` (dict): Activations. Default: GELU.
    - ``mlp_act_cfg`` (dict, optional): Activations of the MLPs alone; FocalNet and MixFormer.
      Default: ``act_cfg``.
    - ``out_indices`` (int or Sequence[int], optional): Stages whose maps are returned, from the
      first stage to the last whatever their order here; negative ones count from the last. Stages
      after the last of them are not built. Default: all.
    - ``out_norm`` (bool): Whether each map passes a norm of its own, ``norm{i}``, as in the
      official detectors. False: the raw maps, as in the classifiers. Default: True.
    - ``frozen_stages`` (int): -1: none; 0: the patch embedding; n: the patch embedding and the
      first n stages. Default: -1.
    - ``norm_eval`` (bool): Keeps the statistics of every BatchNorm fixed in training. Default:
      False.
    - ``with_cp`` (bool): Recomputes blocks in the backward pass to save memory. Default: False.
    - ``init_cfg`` (dict or list, optional): Initialization. Default: linear layers from a truncated
      normal distribution with std 0.02; MixFormer's convolutions by Kaiming's method.

    Arguments of other implementations (``embed_dim``, ``use_checkpoint``, ``pretrained``, ...) end
    in a TypeError that says what to give here.

    Layer-wise learning rates: the constructors of mmpretrain, mmdet and mmseg work with these
    backbones; the options of the latter two are in :mod:`.layer_decay`.

    Args:
        patch_embed (nn.Module): Maps (N, in_channels, H, W) to (N, H', W', C).
        stages (Sequence[Stage]): The stages; all but the last have a step down. Those after the
            last output are dropped, with the step down to them.
        dims (Sequence[int]): Channels of each stage.
        drop_rate (float): Dropout rate after the patch embedding.
        out_indices (int, Sequence[int] or None): Stages whose maps are returned. None: all.
        out_norm (bool): Whether each output passes a norm of its own, ``norm{i}``.
        norm_cfg (dict): The output norms.
        frozen_stages (int): -1: nothing is frozen. n >= 0: the patch embedding and the first n
            stages, with their output norms, keep their weights and stay in eval mode.
        norm_eval (bool): Whether every BatchNorm stays in eval mode in training.
        in_channels (int): Channels of the image.
        adapt_in_channels (bool): Whether checkpoints of other image channels are adapted.
        init_cfg (dict or list): Initialization, see :class:`mmengine.model.BaseModule`.

    Attributes:
        num_features (tuple[int]): Channels of each stage, as in other backbones.

    Raises:
        ValueError: If ``out_indices`` or ``frozen_stages`` name a stage that is not there.
    """

    # Parts of the published classifier that a backbone does not have.
    classifier: tuple[str, ...] = ('norm', 'head')
    # The first layer, which takes the image.
    image_layer: str = 'patch_embed.proj.weight'

    def __init__(
        self,
        patch_embed: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        drop_rate: float,
        out_indices: int | Sequence[int] | None,
        out_norm: bool,
        norm_cfg: dict,
        frozen_stages: int,
        norm_eval: bool,
        in_channels: int,
        adapt_in_channels: bool,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)  # type: ignore[call-arg]  # of BaseModule
        count, family = len(stages), type(self).__name__
        self.out_indices = stage_indices(family, out_indices, count)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= count:
            raise ValueError(
                f'{family}: frozen_stages={frozen_stages!r} for {count} stages; '
                f'choose from -1 (none) to {count} (all)'
            )
        self.num_stages = count
        self.num_features = tuple(dims)
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.in_channels = in_channels
        self.adapt_in_channels = adapt_in_channels
        self.patch_embed: Any = patch_embed
        self.pos_drop = nn.Dropout(drop_rate)
        stages = stages[: self.out_indices[-1] + 1]
        stages[-1].downsample = None
        self.layers: Any = nn.ModuleList(stages)  # Any: ModuleList does not keep the type Stage
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', build_norm(norm_cfg, dims[i]))
        self.record_names()
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W), any H, W >= 1 -> maps of ``out_indices``, each
        (N, C_i, ceil(H / s_i), ceil(W / s_i)) with s_i = patch_size * 2**i.
        """
        maps = []
        with nullcontext() if is_graph() else reuse_memory():
            x = self.pos_drop(self.patch_embed(x))
            for i, stage in enumerate(self.layers):
                x = stage(x)
                if i in self.out_indices:
                    out = getattr(self, f'norm{i}')(x) if self.out_norm else x
                    maps.append(out.permute(0, 3, 1, 2).contiguous())
                if stage.downsample is not None:
                    x = stage.downsample(x.permute(0, 3, 1, 2))
        return tie_maps(maps, self)

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
                hint = describe_prefixes(content.get('state_dict', content), self.image_layer)
                raise CheckpointError(
                    f'{cfg["checkpoint"]}: no key begins with prefix={cfg["prefix"]!r}{hint}'
                ) from None
            raise

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode as :meth:`torch.nn.Module.train`; frozen parts stay in eval mode, and with
        ``norm_eval`` every BatchNorm.
        """
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            fix_statistics(self)
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return how deep a parameter lies, for layer-wise learning rates.

        The patch embedding has depth 0, the blocks count from 1; a step down belongs to the block
        before it. The output norms and everything outside of the backbone come last.

        Args:
            param_name (str): Name of the parameter in the model.
            prefix (str): Start of the names of this backbone, with its dot. Default: ``''``.

        Returns:
            tuple[int, int]: Depth, and the number of depths: blocks + 2.
        """
        depths = [len(stage.blocks) for stage in self.layers]
        last = sum(depths) + 1
        part, *path = param_name.removeprefix(prefix).split('.')
        depth = last
        if param_name.startswith(prefix) and part == 'patch_embed':
            depth = 0
        elif param_name.startswith(prefix) and part == 'layers':
            stage = int(path[0])
            within = int(path[2]) + 1 if path[1] == 'blocks' else depths[stage]
            depth = sum(depths[:stage]) + within
        return depth, last + 1

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
        """Leave out the classifier's head, stages after the last output, and norms of stages that
        are not returned; keep output norms that the checkpoint lacks as they were initialized; and
        fit the first layer to the channels of the image.

        Raises:
            CheckpointError: If the channels differ and ``adapt_in_channels`` is False.
        """
        built = len(self.layers)
        absent = [f'norm{i}' for i in range(self.num_stages) if not hasattr(self, f'norm{i}')]
        later = [f'layers.{i}' for i in range(built, self.num_stages)]
        if later:
            later.append(f'layers.{built - 1}.downsample')
        norms, stages = set(), set()
        own = self.state_dict(prefix=prefix)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            plain = prefix + name.replace('_orig_mod.', '')
            if key not in own and plain in own:  # a part of the net was compiled
                state_dict[plain] = state_dict.pop(key)
                continue
            part = name.split('.')[0]
            if part in self.classifier:
                self.changes['tensor', 'of the classifier left out'] += 1
            elif part in MASKED_IMAGE:
                self.changes['tensor', 'of masked-image pre-training left out'] += 1
            elif part in absent:
                norms.add(part)
            elif name.startswith(tuple(f'{start}.' for start in later)):
                stages.add(next(start for start in later if name.startswith(f'{start}.')))
            else:
                continue
            del state_dict[key]
        for noun, left_out in (('output norm', norms), ('part', stages)):
            if left_out:
                what = f'of the checkpoint left out: {", ".join(sorted(left_out))}'
                self.changes[noun, what] += len(left_out)
        self._fit_image_layer(state_dict, f'{prefix}{self.image_layer}')
        stem = state_dict.get(f'{prefix}patch_embed.proj.weight')
        if stem is None or not self.out_norm:
            return
        for i in self.out_indices:
            norm = initial_state(getattr(self, f'norm{i}'), f'{prefix}norm{i}.', stem.device)
            if norm.keys().isdisjoint(state_dict):
                state_dict.update(norm)
                self.changes['output norm', 'not in the checkpoint, left as initialized'] += 1

    def _fit_image_layer(self, state_dict: dict[str, Tensor], key: str) -> None:
        """Fit the layer that takes the image to its channels, see :func:`fit_image_channels`."""
        weight = state_dict.get(key)
        if weight is None or weight.ndim != 4 or weight.shape[1] == self.in_channels:
            return
        theirs, ours = weight.shape[1], self.in_channels
        if not self.adapt_in_channels:
            raise CheckpointError(
                f'{key} is for images of {theirs} channels, the model has in_channels={ours}: give '
                f'adapt_in_channels=True to adapt it, or in_channels={theirs}'
            )
        state_dict[key] = fit_image_channels(weight, ours)
        how = 'sum' if ours == 1 else 'mean appended'
        self.changes['first layer', f'adapted {theirs} -> {ours} image channels ({how})'] += 1
