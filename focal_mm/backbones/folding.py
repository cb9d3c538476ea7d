"""Folding of BatchNorms into adjacent layers, for inference."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..kernels.inference import affine


def require_eval(net: nn.Module, method: str) -> None:
    """Refuse to fold a network in training mode, where norms use the statistics of the batch.

    Raises:
        RuntimeError: In training mode.
    """
    if net.training:
        raise RuntimeError(
            f'{type(net).__name__}.{method}: the network is in training mode; call eval() first'
        )


@torch.no_grad()
def fold_before(layers: nn.Sequential, index: int = 0) -> None:
    """Fold a norm into the convolution before it in a sequence, and leave an identity."""
    layer, norm = layers[index], layers[index + 1]
    if isinstance(norm, nn.Identity):  # another tool has folded it
        return
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None and isinstance(norm, _BatchNorm)
    scale, shift = affine(norm)
    layer.weight.mul_(scale.view(-1, 1, 1, 1))
    layer.bias.mul_(scale).add_(shift)
    layers[index + 1] = nn.Identity()


@torch.no_grad()
def fold_after(norm: _BatchNorm, layer: nn.Linear | nn.Conv2d) -> None:
    """Fold a norm into the layer after it, whose last input channels it normalizes; a convolution
    must not pad.
    """
    assert layer.bias is not None
    scale, shift = affine(norm)
    weight = layer.weight[:, -len(scale) :].view(len(layer.weight), len(scale), -1)
    layer.bias.add_(weight.sum(-1) @ shift)
    weight.mul_(scale[:, None])
