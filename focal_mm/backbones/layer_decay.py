"""Layer-wise and stage-wise learning rates for models with a staged backbone."""

import re
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from .base import StagedBackbone

POSITION_BIAS = 'relative_position_bias_table'


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FocalLearningRateDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Learning rates that fall from the heads towards the stem, in any mmdet, mmseg or mmpretrain
    model whose ``backbone`` is of this package.

    It takes the place and the options of mmdet's and mmseg's
    ``LearningRateDecayOptimizerConstructor``, which knows ConvNeXt by its name and stops with
    NotImplementedError at other backbones::

        optim_wrapper = dict(
            constructor='FocalLearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise'),
        )

    Biases, position biases and parameters of one axis have no weight decay. The options in
    ``paramwise_cfg`` are:

    - ``decay_rate`` (float): Factor of the learning rate from one layer to the layer before it.
    - ``decay_type`` (str): ``'layer_wise'``: the stem has layer 0, the blocks the layers 1 to n,
      everything else layer n + 1, with the full learning rate. ``'stage_wise'``: the same with
      stages in place of blocks. Default: ``'layer_wise'``.
    - ``num_layers`` (int, optional): n, to which blocks are grouped, or which counts as the number
      of stages. ConvNeXt's configs have 6 or 12. Default: as many as there are.

    Raises:
        ValueError: For another ``decay_type``, no ``decay_rate``, or fewer layers than stages.
        TypeError: If the model has no such backbone.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Add the parameters of a model, one group for each layer and weight decay.

        Args:
            params (list[dict]): The groups, extended.
            module (nn.Module): The model.
            kwargs: Arguments of the base class, without effect.
        """
        layers, count = self._layers(module)
        groups: dict[tuple[int, bool], dict] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim == 1 or name.endswith('.bias') or POSITION_BIAS in name
            scale = self.paramwise_cfg['decay_rate'] ** (count - layers[name])
            group = groups.setdefault(
                (layers[name], plain),
                dict(
                    params=[],
                    param_names=[],
                    group_name=f'layer_{layers[name]}_{"no_decay" if plain else "decay"}',
                    lr_scale=scale,
                    lr=scale * self.base_lr,
                    weight_decay=0.0 if plain else self.base_wd,
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

    def _layers(self, module: nn.Module) -> tuple[dict[str, int], int]:
        """Return the layer of each parameter, and the last layer."""
        name, options = type(self).__name__, self.paramwise_cfg
        kind, count = options.get('decay_type', 'layer_wise'), options.get('num_layers')
        if kind not in ('layer_wise', 'stage_wise'):
            raise ValueError(f'{name}: decay_type={kind!r}; choose layer_wise or stage_wise')
        if 'decay_rate' not in options:
            raise ValueError(f'{name}: paramwise_cfg lacks decay_rate; give one, such as 0.8')
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, StagedBackbone):
            raise TypeError(
                f'{name}: {type(module).__name__} has no FocalNet, FocalTransformer or MixFormer '
                'as its backbone; take the constructor of the package that its backbone is from'
            )
        names = [key for key, _ in module.named_parameters()]
        if kind == 'stage_wise':
            number = len(backbone.layers)
            depths = {key: _stage(key, number) for key in names}
            if count is not None and count < number:
                raise ValueError(f'{name}: num_layers={count} for {number} stages; give {number}')
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
