"""Inference with maps by bands of rows, and with BatchNorms as part of the convolution before them.

What lies between two layers then stays in the cache.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .dispatch import can_fuse, is_eager, wants_grad
from .linear import PatchConv2d
from .map_conv import MapConv2d
from .memory import count_parts, is_large, new_map

_CONVOLUTIONS = nn.Conv2d, MapConv2d, PatchConv2d


def can_infer(x: Tensor, module: nn.Module, *steps: tuple[nn.Module, str]) -> bool:
    """Return whether a module should work by bands: on a map on a CPU that its cache
    does not hold, in eval mode, without gradients, and only if nothing in it is replaced or
    observed.

    Args:
        x (Tensor): The map.
        module (nn.Module): The module.
        steps: Methods that take part, as :func:`can_fuse` takes them.
    """
    if not is_eager() or not x.is_cpu or not is_large(x):
        return False
    inner = list(module.modules())
    return (
        not any(child.training for child in inner)
        and all(_is_fixed(child) for child in inner if isinstance(child, _BatchNorm))
        and not wants_grad(x, *module.parameters())
        and can_fuse(*((child, type(child)) for child in inner), *steps)
    )


def by_bands(
    step: Callable[..., tuple[Tensor, ...]],
    width: int,
    *maps: Tensor,
    shrink: int = 1,
    halo: int = 0,
    outs: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Apply a step to bands of rows of maps, one after another.

    Args:
        step (callable): Takes a band of each map and returns its results, in the same order of
            axes.
        width (int): Channels of the widest map within the step, for each token of the results.
        maps (Tensor): Shape (N, H, W, C), of equal N and H.
        shrink (int): Rows of the maps for each row of the results. Default: 1.
        halo (int): Rows of the results above and below a row, on whose pixels the row depends.
            Default: 0.
        outs (Sequence[Tensor], optional): Memory for the results. Default: it is allocated.

    Returns:
        tuple[Tensor, ...]: The results, each (N, H / shrink, W', C').
    """
    height, across = (side // shrink for side in maps[0].shape[1:3])
    bands = count_parts(len(maps[0]) * height * across, width)
    if bands == 1 and outs is None:
        return step(*maps)
    rows = -(-height // bands)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        top, bottom = max(0, first - halo), min(height, last + halo)
        results = step(*(x[:, top * shrink : bottom * shrink] for x in maps))
        if outs is None:
            outs = [new_map(part, len(part), height, *part.shape[2:]) for part in results]
        for out, part in zip(outs, results, strict=True):
            out[:, first:last] = part[:, first - top : last - top]
    return tuple(outs or ())


def is_folded(layers: nn.Module) -> bool:
    """Return whether :func:`apply_folded` folds the norms of a sequence."""
    if (
        not is_eager()
        or type(layers) is not nn.Sequential
        or not isinstance(layers[0], _CONVOLUTIONS)
    ):
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
            x = layer._conv_forward(x, weight, bias)
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
