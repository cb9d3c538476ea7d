"""Batch normalization in the steps between which mmcv's SyncBatchNorm adds up over the processes.

Inputs, outputs and their gradients have shape (N, C, S) for S pixels, in any floating-point type.
All else is float32: ``norm`` has the shape of the input, the other tensors have shape (C,).
"""

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of each channel to ``mean``."""
    mean.copy_(input.mean((0, 2), dtype=mean.dtype))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared distance of each channel from ``mean`` to ``var``."""
    var.copy_((input.to(var.dtype) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize with the statistics of all processes and update the running ones.

    Args:
        input (Tensor): (N, C, S).
        mean (Tensor): Mean over all processes.
        var (Tensor): Biased variance over all processes.
        weight (Tensor | None): Factor of each channel, after the normalization.
        bias (Tensor | None): Added to each channel.
        running_mean (Tensor | None): Updated.
        running_var (Tensor | None): Updated with the unbiased variance.
        norm (Tensor): Written: the normalized input.
        std (Tensor): Written: the standard deviation, of ``var + eps``.
        output (Tensor): (N, C, S), written.
        eps (float): Added to the variance.
        momentum (float | Tensor): Weight of this batch in the running statistics.
        group_size (int): Number of processes, each with an input of the same size.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.to(norm.dtype) - mean[:, None]) / std[:, None])
    result = norm if weight is None else norm * weight[:, None]
    output.copy_(result if bias is None else result + bias[:, None])
    if running_mean is None or running_var is None:
        return
    count = input.size(0) * input.size(2) * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        running.copy_(momentum * batch + (1 - momentum) * running)


def sync_bn_backward_param(
    grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    """Write the gradients of weight and bias to ``grad_weight`` and ``grad_bias``."""
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input to ``grad_input``.

    ``grad_weight`` and ``grad_bias`` are means over the processes of the gradients that
    :func:`sync_bn_backward_param` writes.
    """
    count = grad_output.size(0) * grad_output.size(2)
    along = (norm * grad_weight[:, None] + grad_bias[:, None]) / count
    scale = (weight / std)[:, None]
    grad_input.copy_(scale * (grad_output.to(norm.dtype) - along))
