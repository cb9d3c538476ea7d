"""What the families share: arguments, patch embedding, MLP, stages, and the backbone around them.

Inside a backbone a map is (N, H, W, C): the linear layers and norms act on the last axis, and a
convolution sees the same memory as a channels-last (N, C, H, W).
"""
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ..weights.resize import CheckpointError, FittedModule
from .depthwise import autocast, wants_grad

# Floats of the hidden map that an MLP has in work at a time. Measured on two cores with 60800 x 96
# tokens: 67 ms, and 152 ms with all at once.
SLICE = 1 << 21


def resolve_arch(family: str, archs: dict[str, dict], arch: str | dict, **given) -> dict:
    """The settings of an arch, with what was given beside it.

    Args:
        family (str): Name of the backbone, for the errors.
        archs (dict): Name to settings. Every arch has the same keys.
        arch (str or dict): A name, or the settings themselves; of those that a dict lacks, all
            but ``embed_dims`` and ``depths`` are the first arch's.
        given: Settings that override the arch's; None leaves the arch's own.

    Returns:
        dict: Settings.

    Raises:
        ValueError: For an unknown name (with the near ones) or setting, or one that is lacking.
    """
    first = next(iter(archs.values()))
    if isinstance(arch, str):
        if arch not in archs:
            near = get_close_matches(arch, archs, n=3, cutoff=0.5)
            hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
            raise ValueError(f'{family}: unknown arch {arch!r}; {hint}Known: {", ".join(archs)}')
        arch = archs[arch]
    for key in arch:
        if key not in first:
            raise ValueError(f'{family}: unknown key {key!r} in arch; known: {", ".join(first)}')
    for key in ('embed_dims', 'depths'):
        if key not in arch and given.get(key) is None:
            raise ValueError(f'{family}: arch lacks {key!r}; known keys: {", ".join(first)}')
    settings = {**first, **arch}
    settings.update((key, value) for key, value in given.items() if value is not None)
    if isinstance(settings['depths'], int):
        settings['depths'] = (settings['depths'], ) * 4
    return settings


def per_stage(family: str, name: str, value: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """One value for each stage; an int stands for equal ones.

    Raises:
        ValueError: If there are more or fewer values than stages.
    """
    if isinstance(value, int):
        return (value, ) * stages
    if len(value) != stages:
        raise ValueError(f'{family}: {name}={tuple(value)} has {len(value)} values for {stages} '
                         f'stages; give {stages} values, or one int for all')
    return tuple(value)


def lack(side: int, multiple: int) -> int:
    """What a side lacks to be a multiple. ``-side % multiple`` is the same, but as a symbol it
    does not cancel out of the padded side, and a net of dynamic shape takes minutes to trace."""
    return (side + multiple - 1) // multiple * multiple - side


def relative_index(window_size: int, region: int) -> Tensor:
    """Where a table of (window_size + region - 1)^2 biases has that of each query in a window and
    key in a region, both counted row by row: shape (window_size^2, region^2)."""
    side = window_size + region - 1
    offset = torch.arange(window_size)[:, None] - torch.arange(region) + region - 1
    index = offset[:, None, :, None] * side + offset[:, None, :]
    return index.flatten(2).flatten(0, 1)


def fix_statistics(module: nn.Module) -> None:
    """Puts every BatchNorm within a module into eval mode, as ``norm_eval`` asks."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within it no BatchNorm of a module counts what passes among its running statistics."""
    norms = [(child, child.momentum, child.num_batches_tracked) for child in module.modules()
             if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    for norm, *_ in norms:
        norm.momentum, norm.num_batches_tracked = 0., None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum, norm.num_batches_tracked = momentum, count


def log_changes(backbone: nn.Module, _: object) -> None:
    """Reports in one line a kind what loading has changed within a backbone, whose hook after
    loading this is."""
    changes: Counter = Counter()
    for module in backbone.modules():
        if isinstance(module, FittedModule):
            changes += module.changes
            module.changes.clear()
    for (noun, what), count in changes.items():
        print_log(f'{count} {noun}{"s" * (count > 1)} {what}', logger='current')


def is_graph() -> bool:
    """Whether the network is being compiled, exported or traced, and must not look at sizes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_plain(*modules: nn.Module) -> bool:
    """Whether modules are as they were built, without an adapter in their place or a hook: then
    what they compute may be computed from their weights."""
    return all(
        type(module) in (nn.Linear, nn.Conv2d) and not (
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            or module._backward_pre_hooks) for module in modules)


def is_gelu(act: nn.Module) -> bool:
    """Whether an activation is the exact GELU, which the autograd functions compute."""
    return type(act) is nn.GELU and act.approximate == 'none'


def is_convolved(x: Tensor) -> bool:
    """Whether a linear layer does better as a 1x1 convolution, forwards or backwards: oneDNN's
    product is the faster one on a CPU."""
    return x.is_cpu and x.dtype != torch.double


def pixels(rows: Tensor) -> Tensor:
    """Rows (T, C) as a map (1, C, 1, T) in the same memory."""
    return rows[None, None].permute(0, 3, 1, 2)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear` of rows: (T, C) -> (T, C').

    A convolution adds the bias as it goes: 190 GFLOP/s to 160 on two cores. For few rows it is the
    other way round, since it copies the weight first: 110 to 160 for 196 rows of 768 channels.
    """
    if not is_convolved(x) or len(x) < 512:
        return F.linear(x, weight, bias)
    out = F.conv2d(pixels(x), weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(x), len(weight))


def gradient_of_rows(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of :func:`multiply` by x: (T, C') -> (T, C). That of a convolution has 180 GFLOP/s
    to 160, with few rows 165 to 145."""
    if not is_convolved(x):
        return grad @ weight
    grad_x, *_ = torch.ops.aten.convolution_backward(
        pixels(grad), pixels(x), weight[:, :, None, None], None, (1, 1), (0, 0), (1, 1), False,
        (0, 0), 1, (True, False, False))
    return grad_x.permute(0, 2, 3, 1).reshape(x.shape)


class LinearFunction(torch.autograd.Function):
    """:func:`multiply` with the faster gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        # The product whose first factor is the wider one is the faster one.
        narrows = len(weight) < x.shape[1]
        return (gradient_of_rows(grad, x, weight) if of_x else None,
                ((x.t() @ grad).t() if narrows else grad.t() @ x) if of_weight else None,
                grad.sum(0) if of_bias else None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`torch.nn.functional.linear` on the last axis."""
    if is_graph() or not is_convolved(x):
        return F.linear(x, weight, bias)
    tensors = [x.flatten(0, -2), weight, *([] if bias is None else [bias])]
    compute = LinearFunction.apply if wants_grad(*tensors) else multiply
    rows, weight, *bias = autocast(*tensors)
    return compute(rows, weight, *(bias or [None])).unflatten(0, x.shape[:-1])


def project(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer by :func:`linear`, unless something has taken its place or watches it."""
    return linear(x, layer.weight, layer.bias) if is_plain(layer) else layer(x)


def convolve_patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution: (N, C, H, W) -> (N, C', H', W').

    One whose stride is its kernel, 1x1 say, is a product in a graph: how PyTorch convolves one
    image depends on the image's size, and a graph would be made for each way.
    """
    if not (is_graph() and is_plain(layer) and layer.kernel_size == layer.stride):
        return layer(x)
    x, side = x.permute(0, 2, 3, 1), layer.kernel_size[0]
    if side > 1:
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(3)
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(x, weight, layer.bias).permute(0, 3, 1, 2)


class MlpFunction(torch.autograd.Function):
    """Linear, GELU, linear on rows; the activated hidden map is never whole in memory.

    On a CPU rows go through in slices that stay in its cache. For the backward pass the hidden map
    is stored before GELU alone.
    """

    @staticmethod
    def slices(x: Tensor, hidden_dim: int) -> Iterator[slice]:
        count = -(-len(x) * hidden_dim // SLICE) if x.device.type == 'cpu' else 1
        step = -(-len(x) // count)
        return (slice(i, i + step) for i in range(0, len(x), step))

    @staticmethod
    def compute(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
                hidden: list[Tensor] | None = None) -> Tensor:
        """(T, C) -> (T, C'); ``hidden`` takes what comes out of the first layer, slice by slice."""
        out = x.new_empty(len(x), len(w2))
        for rows in MlpFunction.slices(x, len(w1)):
            part = multiply(x[rows], w1, b1)
            if hidden is None:
                torch.ops.aten.gelu_(part)
            else:
                hidden.append(part)
                part = F.gelu(part)
            out[rows] = multiply(part, w2, b2)
        return out

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = []
        out = MlpFunction.compute(x, w1, b1, w2, b2, hidden)
        ctx.save_for_backward(x, w1, w2, *hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        x, w1, w2, *hidden = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        sums = torch.promote_types(x.dtype, torch.float)
        grad_w1, grad_w2 = (torch.zeros_like(w, dtype=sums) for w in (w1, w2))
        grad_b1 = grad_w1.new_zeros(len(w1))

        def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
            if total.dtype == a.dtype:
                total.addmm_(a, b)
            else:
                total += a @ b

        for rows, part in zip(MlpFunction.slices(x, len(w1)), hidden):
            add_product(grad_w2.t(), F.gelu(part).t(), grad[rows])
            part = torch.ops.aten.gelu_backward(gradient_of_rows(grad[rows], part, w2), part)
            add_product(grad_w1, part.t(), x[rows])
            grad_b1 += part.sum(0)
            grad_x[rows] = gradient_of_rows(part, x[rows], w1)
        dtype = x.dtype
        return grad_x, grad_w1.to(dtype), grad_b1.to(dtype), grad_w2.to(dtype), grad.sum(0)


class Mlp(BaseModule):
    """Two linear layers with an activation between, on the last axis.

    Args:
        dim (int): Channels in and out.
        hidden_dim (int): Channels between.
        act_cfg (dict): The activation. Default: GELU.
        drop (float): Dropout rate after each linear layer. Default: 0.
    """

    def __init__(self, dim: int, hidden_dim: int, act_cfg: dict = dict(type='GELU'),
                 drop: float = 0.) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        fused = (is_gelu(self.act) and not (self.training and self.drop.p) and not is_graph()
                 and is_plain(self.fc1, self.fc2))
        if not fused:
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        weights = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        rows, *weights = autocast(x.flatten(0, -2), *weights)
        compute = MlpFunction.apply if wants_grad(rows, *weights) else MlpFunction.compute
        out = compute(rows, *weights)
        return out.unflatten(0, x.shape[:-1])


class PatchEmbed(FittedModule):
    """Splits a map into patches and embeds each; the stem, and the step between two stages.

    The map is zero-padded at the right and at the bottom to a multiple of the patch.

    Args:
        in_channels (int): Channels in.
        embed_dims (int): Channels out.
        patch_size (int): Side of a patch, and the stride, in pixels.
        overlap (int or None): None: a patch sees its own pixels. An int: the convolution is
            overlapped (FocalNet, Table 2), its kernel 7 for patches of 4 and 3 for those of 2,
            and this is its padding in pixels.
        norm_cfg (dict or None): The norm after the convolution. None: none.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int,
                 overlap: int | None = None, norm_cfg: dict | None = dict(type='LN')) -> None:
        super().__init__()
        self.patch_size = patch_size
        kernel_size = patch_size if overlap is None else {2: 3, 4: 7}[patch_size]
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size, patch_size, overlap or 0)
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1] if norm_cfg else nn.Identity()

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Nothing is changed: overlapped and plain kernels see other pixels.

        Raises:
            CheckpointError: If the checkpoint's is the other kind.
        """
        key = f'{prefix}proj.weight'
        if key in state_dict and state_dict[key].shape[2:] != self.proj.weight.shape[2:]:
            theirs, ours = state_dict[key].shape[2], self.proj.kernel_size[0]
            raise CheckpointError(
                f'{key} has {theirs}x{theirs} kernels, the model {ours}x{ours}: plain and '
                'overlapped patch embedding (or two patch sizes) do not mix; build the model with '
                f'use_conv_embed={theirs > ours}, or with the patch_size of the checkpoint')

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ceil(H / patch_size), ceil(W / patch_size), embed_dims)."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, lack(width, self.patch_size), 0, lack(height, self.patch_size)))
        return self.norm(convolve_patches(self.proj, x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks at one resolution, and the step down to the next.

    Args:
        blocks (Sequence[nn.Module]): Each maps (N, H, W, C) to the same shape.
        downsample (nn.Module or None): Maps (N, C, H, W) to (N, H', W', C').
        with_cp (bool): Recomputes each block in the backward pass to save memory.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None,
                 with_cp: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C), before the step down."""
        for block in self.blocks:
            if self.with_cp and x.requires_grad:
                # What passes BatchNorm again is no other batch.
                x = checkpoint(block, x, use_reentrant=False, context_fn=lambda block=block: (
                    nullcontext(), kept_statistics(block)))
            else:
                x = block(x)
        return x


class StagedBackbone(BaseModule, FittedModule):
    """Patch embedding, stages, and a map out of each stage that was asked for.

    Args:
        patch_embed (nn.Module): Maps (N, in_channels, H, W) to (N, H', W', C).
        stages (Sequence[Stage]): Each stage; all but the last have a step down.
        dims (Sequence[int]): Channels of each stage.
        drop_rate (float): Dropout rate after the patch embedding.
        out_indices (Sequence[int] or None): Stages whose maps are returned. None: all.
        out_norm (bool): Whether each output passes a norm of its own, ``norm{i}``.
        norm_cfg (dict): Those norms.
        frozen_stages (int): -1: nothing is frozen. n >= 0: the patch embedding and the first n
            stages, with their output norms, keep their weights and stay in eval mode.
        init_cfg (dict or list): Initialisation, see :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``out_indices`` or ``frozen_stages`` name a stage that is not there.
    """

    # Parts of the published classifier that a backbone does not have.
    classifier: tuple[str, ...] = ('norm', 'head')

    def __init__(self, patch_embed: nn.Module, stages: Sequence[Stage], dims: Sequence[int],
                 drop_rate: float, out_indices: Sequence[int] | None, out_norm: bool,
                 norm_cfg: dict, frozen_stages: int, init_cfg: dict | list | None) -> None:
        super().__init__(init_cfg=init_cfg)
        count, family = len(stages), type(self).__name__
        self.out_indices = tuple(range(count)) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(range(count)):
            raise ValueError(f'{family}: out_indices={self.out_indices} for {count} stages; '
                             f'choose from 0 to {count - 1}')
        if not -1 <= frozen_stages <= count:
            raise ValueError(f'{family}: frozen_stages={frozen_stages} for {count} stages; '
                             f'choose from -1 (none) to {count} (all)')
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.patch_embed = patch_embed
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList(stages)
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', build_norm_layer(norm_cfg, dims[i])[1])
        self.register_load_state_dict_post_hook(log_changes)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, in_channels, H, W), any H, W >= 1 -> maps of ``out_indices``, each
        (N, C_i, ceil(H / s_i), ceil(W / s_i)) with s_i = patch_size * 2**i."""
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

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """As :meth:`torch.nn.Module.train`; what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        norms = [getattr(self, f'norm{i}', None) for i in range(self.frozen_stages)]
        for module in (self.patch_embed, *self.layers[:self.frozen_stages], *norms):
            if module is not None:
                module.eval().requires_grad_(False)

    def _before_load(self, state_dict: dict, prefix: str, local_metadata: dict, *_) -> None:
        """Fits and checks everything before the first tensor is copied, so that a checkpoint
        that does not belong here leaves the model as it was."""
        file = local_metadata.get('file')
        fitted = [(f'{name}.' if name else '', module)
                  for name, module in self.named_modules(prefix=prefix.rstrip('.'))
                  if isinstance(module, FittedModule)]
        try:
            for name, module in fitted:
                module.fit_state_dict(state_dict, name)
            # A file must be whole; a bare state dict may be a part, as everywhere in PyTorch.
            self._check(state_dict, prefix, whole=file is not None)
        except CheckpointError as error:
            for _, module in fitted:
                module.changes.clear()
            raise CheckpointError(f'{file or "state dict"}: {error}') from None

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *_) -> None:
        """Gives each part of a published classifier to its place in an ``ImageClassifier``.
        mmpretrain looks for this name, and calls it before such a model loads a state dict."""
        if f'{prefix}patch_embed.proj.weight' not in state_dict:
            return
        last = f'backbone.norm{self.out_indices[-1]}' if self.out_norm else 'head.norm'
        places = dict(norm=last, last_proj='head.last_proj', head='head.fc')
        for key in [key for key in state_dict if key.startswith(prefix)]:
            part, _, name = key[len(prefix):].partition('.')
            place = places[part] if part in self.classifier else f'backbone.{part}'
            state_dict[f'{prefix}{place}.{name}'] = state_dict.pop(key)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Leaves a classifier's head out, and starts output norms anew where there are none."""
        for key in list(state_dict):
            part = key[len(prefix):].split('.')[0]
            if key.startswith(prefix) and part in self.classifier:
                del state_dict[key]
                self.changes['tensor', 'of the classifier left out'] += 1
        if f'{prefix}patch_embed.proj.weight' not in state_dict or not self.out_norm:
            return
        for i in self.out_indices:
            norm = getattr(self, f'norm{i}').state_dict(prefix=f'{prefix}norm{i}.')
            if not norm.keys() & state_dict.keys():
                state_dict.update(norm)
                self.changes['output norm', 'not in the checkpoint, left as initialised'] += 1

    def _check(self, state_dict: dict[str, Tensor], prefix: str, whole: bool) -> None:
        own = self.state_dict(prefix=prefix)
        if whole and not own.keys() & state_dict.keys():
            first = next((key for key in state_dict if key.startswith(prefix)), 'no key')
            raise CheckpointError(f'not a checkpoint of {type(self).__name__}: it has {first}, '
                                  f'and nothing like {next(iter(own))}')
        for key, value in own.items():
            if key not in state_dict:
                if whole:
                    raise CheckpointError(f'{key} is missing; another depth or option, or a part '
                                          'of a file: build the model as the checkpoint was')
            elif state_dict[key].shape != value.shape:
                raise CheckpointError(
                    f'{key} is {tuple(state_dict[key].shape)} where {type(self).__name__} has '
                    f'{tuple(value.shape)}; build the model with the sizes of the checkpoint, or '
                    'take the checkpoint of this arch')
        for key in state_dict if whole else ():
            if key.startswith(prefix) and key not in own:
                raise CheckpointError(f'{key} is not in the {type(self).__name__} that was built; '
                                      'build it as the checkpoint was')
