"""Layer-wise and stage-wise learning rates for models with a staged backbone.

mmdet's and mmseg's ``LearningRateDecayOptimizerConstructor`` calls :func:`add_layers` for them::

    optim_wrapper = dict(
        constructor='LearningRateDecayOptimizerConstructor',
        paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise'),
    )
"""

import re
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

POSITION_BIAS = 'relative_position_bias_table'


def add_layers(
    constructor: DefaultOptimWrapperConstructor, params: list[dict], model: nn.Module
) -> None:
    """Add the parameters of a model, one group for each layer and weight decay; learning rates fall
    from the heads towards the stem.

    Biases, position biases and parameters of one axis have no weight decay. The options in
    ``paramwise_cfg`` are:

    - ``decay_rate`` (float): Factor of the learning rate from one layer to the layer before it.
    - ``decay_type`` (str): ``'layer_wise'``: the stem has layer 0, the blocks the layers 1 to n,
      everything else layer n + 1, with the full learning rate. ``'stage_wise'``: the same with
      stages in place of blocks. Default: ``'layer_wise'``.
    - ``num_layers`` (int, optional): n, to which blocks are grouped, or which counts as the number
      of stages. ConvNeXt's configs have 6 or 12. Default: as many as there are.

    Args:
        constructor (DefaultOptimWrapperConstructor): It has the options and the base values.
        params (list[dict]): The groups, extended.
        model (nn.Module): Its ``backbone`` is a :class:`.StagedBackbone`.

    Raises:
        ValueError: For another ``decay_type``, no ``decay_rate``, or fewer layers than stages.
    """
    layers, count = _layers(model, constructor.paramwise_cfg)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim == 1 or name.endswith('.bias') or POSITION_BIAS in name
        scale = constructor.paramwise_cfg['decay_rate'] ** (count - layers[name])
        group = groups.setdefault(
            (layers[name], plain),
            dict(
                params=[],
                param_names=[],
                group_name=f'layer_{layers[name]}_{"no_decay" if plain else "decay"}',
                lr_scale=scale,
                lr=scale * constructor.base_lr,
                weight_decay=0.0 if plain else constructor.base_wd,
            ),
        )
        group['params'].append(parameter)
        group['param_names'].append(name)
    for _, group in sorted(groups.items()):
        print_log(
            f'{group["group_name"]}: {len(group["params"])} parameters, lr {group["lr"]:.3g}, '
            f'weight decay {group["weight_decay"]}',
            logger='current',
        )
    params.extend(groups.values())


def _layers(model: nn.Module, options: dict) -> tuple[dict[str, int], int]:
    """Return the layer of each parameter, and the last layer."""
    kind, count = options.get('decay_type', 'layer_wise'), options.get('num_layers')
    if kind not in ('layer_wise', 'stage_wise'):
        raise ValueError(f'paramwise_cfg: decay_type={kind!r}; choose layer_wise or stage_wise')
    if 'decay_rate' not in options:
        raise ValueError('paramwise_cfg lacks decay_rate; give one, such as 0.8')
    backbone: Any = model.backbone
    names = [key for key, _ in model.named_parameters()]
    if kind == 'stage_wise':
        number = len(backbone.layers)
        depths = {key: _stage(key, number) for key in names}
        if count is not None and count < number:
            raise ValueError(
                f'paramwise_cfg: num_layers={count} for {number} stages; give {number}'
            )
    else:
        number = backbone.get_layer_depth('')[1] - 2
        depths = {key: backbone.get_layer_depth(key, 'backbone.')[0] for key in names}
        if count is not None:  # group the blocks evenly; the last one gets layer `count`
            depths = {key: -(-depth * count // number) for key, depth in depths.items()}
            number = count
    last = (number if count is None else count) + 1
    return {key: last if d > number else d for key, d in depths.items()}, last


def _stage(name: str, stages: int) -> int:
    """Return 0 for the stem, the stage counted from 1, or ``stages + 1`` for everything else."""
    if name.startswith('backbone.patch_embed.'):
        return 0
    found = re.match(r'backbone\.layers\.(\d+)\.', name)
    return int(found[1]) + 1 if found else stages + 1
