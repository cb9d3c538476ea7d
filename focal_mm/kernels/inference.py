"""What inference can do and training cannot: maps that go through some rows at a time, and
BatchNorms that are part of the convolution before them.

Nothing is stored for a backward pass, so that what is computed on the way to a result can stay in
the processor's cache. On a CPU, memory that is new to the process costs more than the activation or
the norm that is written to it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .dispatch import can_fuse, wants_grad
from .linear import PatchConv2d

# Elements of the largest map that are computed at a time.
ELEMENTS = 1 << 21

_CONVOLUTIONS = nn.Conv2d, PatchConv2d
_OF_TOKENS = nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Identity, nn.Sequential


def acts_on_tokens(*modules: nn.Module) -> bool:
    """Return whether modules compute each token of a map from itself alone, without gradients, and
    nothing has been changed about them or observes them.
    """
    parts = [part for module in modules for part in module.modules()]
    return (
        all(
            type(part) in _OF_TOKENS
            or _is_fixed(part)
            or (type(part) is PatchConv2d and part.kernel_size == (1, 1))
            for part in parts
        )
        and can_fuse(*((part, type(part)) for part in parts))
        and not wants_grad(*(weight for part in parts for weight in part._parameters.values()))
    )


def by_rows(
    function: Callable[..., Tensor],
    *maps: Tensor,
    elements: int,
    shrink: int = 1,
    halo: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Apply a function to maps, some rows at a time.

    Args:
        function (Callable): Takes rows of the maps, and returns rows of the result.
        maps (Tensor): Shape (N, H, W, C).
        elements (int): Elements of the largest map within the function for a row of the result.
        shrink (int): Rows of the maps for each row of the result. Default: 1.
        halo (int): Rows of the result on both sides of a row, whose pixels the row depends on.
            Default: 0.
        out (Tensor, optional): Memory for the result. Default: it is allocated.

    Returns:
        Tensor: Shape (N, H / shrink, W', C').
    """
    height = maps[0].shape[1] // shrink
    step = -(-height // max(1, -(-height * elements // ELEMENTS)))
    if step >= height and out is None:
        return function(*maps)
    for first in range(0, height, step):
        last = min(first + step, height)
        top, bottom = max(0, first - halo), min(height, last + halo)
        rows = function(*(x[:, top * shrink : bottom * shrink] for x in maps))
        if out is None:
            out = rows.new_empty(len(rows), height, *rows.shape[2:])
        out[:, first:last] = rows[:, first - top : last - top]
    assert out is not None
    return out


def is_folded(layers: nn.Module) -> bool:
    """Return whether :func:`apply_folded` folds the norms of a sequence."""
    if type(layers) is not nn.Sequential or not isinstance(layers[0], _CONVOLUTIONS):
        return False
    known = all(
        (type(layer) in _CONVOLUTIONS and layer.padding_mode == 'zeros')
        or (_is_fixed(layer) and type(before) in _CONVOLUTIONS)
        or type(layer) in (nn.GELU, nn.Identity)
        for before, layer in zip([None, *layers], layers)
    )
    return (
        known
        and can_fuse((layers, nn.Sequential), *((layer, type(layer)) for layer in layers))
        and not wants_grad(*layers.parameters())
    )


def apply_folded(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply convolutions, BatchNorms and GELUs. Without gradients, a norm with running statistics
    becomes part of the convolution before it, and GELU overwrites its result.

    Args:
        layers (nn.Sequential): The layers; they are called one by one if they are of other types,
            or hooked or changed.
        x (Tensor): Shape (N, C, H, W).

    Returns:
        Tensor: Shape (N, C', H', W').
    """
    if not is_folded(layers) or wants_grad(x):
        return layers(x)
    steps = list(layers)
    for layer, following in zip(steps, [*steps[1:], None]):
        if isinstance(layer, nn.Conv2d):
            weight, bias = layer.weight, layer.bias
            if isinstance(following, _BatchNorm):
                scale, shift = affine(following)
                weight = weight * scale.view(-1, 1, 1, 1)
                bias = shift if bias is None else torch.addcmul(shift, bias, scale)
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        elif isinstance(layer, nn.GELU):
            torch.ops.aten.gelu_(x)
    return x


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift of each channel of a BatchNorm in eval mode."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _is_fixed(norm: nn.Module) -> bool:
    """Return whether a module is a BatchNorm that uses its running statistics."""
    return (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.running_mean is not None
        and norm.affine
    )
