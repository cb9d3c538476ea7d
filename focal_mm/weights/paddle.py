"""Names and layout of PaddlePaddle's state dicts."""

from collections import OrderedDict

import torch
from torch import Tensor


def is_paddle(state_dict: dict[str, Tensor]) -> bool:
    """Return whether a state dict has Paddle's names and layout.

    Its BatchNorm has ``_mean`` and ``_variance``. FocalNet has no BatchNorm; it maps C channels to
    more than 2 C by a linear layer, whose weight Paddle stores as (in, out).
    """
    return any(
        (key.endswith('._mean') and f'{key[:-4]}variance' in state_dict)
        or (
            key.endswith('.modulation.f.weight')
            and value.ndim == 2
            and value.shape[0] < value.shape[1]
        )
        for key, value in state_dict.items()
    )


def to_torch(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose a state dict of Paddle; any other is returned unchanged.

    Weights of linear layers, square ones too, become (out, in), ``_mean`` and ``_variance`` of
    BatchNorm ``running_mean`` and ``running_var``, with a ``num_batches_tracked`` of 0.

    Args:
        state_dict (dict): Tensors by name.

    Returns:
        dict: Tensors with the names and shapes of PyTorch.
    """
    if not is_paddle(state_dict):
        return state_dict
    converted = OrderedDict()
    for key, value in state_dict.items():
        if key.endswith('.weight') and value.ndim == 2:
            value = value.T.contiguous()
        module, _, name = key.rpartition('.')
        if name == '_mean':
            key = f'{module}.running_mean'
        elif name == '_variance':
            key = f'{module}.running_var'
            converted[f'{module}.num_batches_tracked'] = torch.tensor(0)
        converted[key] = value
    return converted
