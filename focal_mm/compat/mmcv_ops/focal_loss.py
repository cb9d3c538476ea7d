"""Sigmoid focal loss (Lin et al., 2017, eq. 5, on class-wise sigmoids) with mmcv's numerics."""

import torch
from torch import Tensor

from .precision import at_least_float32

TINY = torch.finfo(torch.float32).tiny  # smaller probabilities count as this in logarithms


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the focal loss of each logit.

    It is -alpha (1 - p)**gamma log(p) for the target class and -(1 - alpha) p**gamma log(1 - p) for
    the other classes.

    Args:
        input (Tensor): (N, C) logits; p is their sigmoid. float32 or float64; half precision is
            computed in float32.
        target (Tensor): (N,) int64 classes, C for background.
        weight (Tensor): (C,) factors of the rows of each target class; rows of background have
            factor 1. Empty: no factors.
        output (Tensor): (N, C), written.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the target class.

    Raises:
        ValueError: If a target is larger than C.
    """
    logits, row_weight = at_least_float32(input, _row_weight(input, target, weight))
    p = logits.sigmoid()
    hit = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log()
    miss = -(1 - alpha) * p**gamma * (1 - p).clamp(min=TINY).log()
    output.copy_(row_weight * hit.where(_is_target(input, target), miss))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each entry of the loss by its logit to ``grad_input``, (N, C)."""
    logits, row_weight = at_least_float32(input, _row_weight(input, target, weight))
    p = logits.sigmoid()
    hit = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * p.clamp(min=TINY).log())
    miss = -(1 - alpha) * p**gamma * (gamma * (1 - p) * (1 - p).clamp(min=TINY).log() - p)
    grad_input.copy_(row_weight * hit.where(_is_target(input, target), miss))


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.size(1), device=input.device)


def _row_weight(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the weight of each row, (N, 1), with 1 for background."""
    if target.numel() and target.max() > input.size(1):
        raise ValueError(
            f'sigmoid_focal_loss: target {int(target.max())} is above the number of '
            f'classes, {input.size(1)} (which means background)'
        )
    if not weight.numel():
        return input.new_ones(1, 1)
    return torch.cat([weight, weight.new_ones(1)])[target][:, None]
