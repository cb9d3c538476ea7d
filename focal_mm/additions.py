"""What focal_mm adds to modules of OpenMMLab, which have no entry point for it.

Some of these modules take seconds to import, so that the additions wait until somebody imports
them:

- mmpretrain's ``list_models``, ``get_model`` and ``inference_model`` take the names of
  ``configs/imagenet/metafile.yml``; ``pretrained=True`` loads the published weights.
- ``LearningRateDecayOptimizerConstructor`` of mmdet and mmseg takes models with a backbone of
  focal_mm, see :mod:`focal_mm.backbones.layer_decay`.
- mmengine's loaders of checkpoints take ``focal://`` names and run no code of a file, and
  ``mmengine.hub.get_config`` takes our configs.
- Corrections of ``mmcv.ops``, see :mod:`focal_mm.compat.mmcv_corrections`.
- ``activation_checkpointing`` and ``efficient_conv_bn_eval`` of mmengine's runner work within
  backbones of focal_mm.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from itertools import pairwise
from types import ModuleType
from typing import Any

from torch import nn

from .compat.mmcv_corrections import CORRECTIONS
from .config import CONFIGS, add_to_hub

_METAFILE = CONFIGS / 'imagenet' / 'metafile.yml'


def add_loaders(module: Any) -> None:
    """Make mmengine load ``focal://`` names, and load addresses and files without running code.

    mmengine 0.10.7 can't read its own checkpoints on torch 2.6 and later
    (open-mmlab/mmengine #1655); its OneDL fork then runs the code in the file.
    """

    def loader(name: str) -> Callable[..., dict]:
        def load(*args: Any, **kwargs: Any) -> dict:
            from .weights import zoo

            return getattr(zoo, name)(*args, **kwargs)

        load.__name__ = name
        return load

    register = module.CheckpointLoader.register_scheme
    register('focal://', loader('load_from_zoo'), force=True)
    register(('http://', 'https://'), loader('load_from_url'), force=True)
    register('', loader('load_from_file'), force=True)
    register((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), loader('load_from_store'), force=True)
    # Names such as torchvision://resnet50 stay mmengine's, which loads by these two.
    module.load_from_http = loader('load_from_url')
    module._safe_torch_load = loader('load_from_file')  # OneDL's


def add_models(module: ModuleType) -> None:
    """Add our classifiers to mmpretrain's list of models."""
    module.ModelHub.register_model_index(_METAFILE, config_prefix=CONFIGS.parent)


def add_layer_decay(module: ModuleType) -> None:
    """Make mmdet's or mmseg's constructor of layer-wise learning rates take our backbones, where
    it stops with NotImplementedError.
    """
    constructor = module.LearningRateDecayOptimizerConstructor
    add_params = constructor.add_params

    @wraps(add_params)
    def add_params_or_layers(
        self: Any, params: list[dict], model: nn.Module, **kwargs: Any
    ) -> None:
        from .backbones.base import StagedBackbone
        from .backbones.layer_decay import add_layers

        if isinstance(getattr(model, 'backbone', None), StagedBackbone):
            add_layers(self, params, model)
        else:
            add_params(self, params, model, **kwargs)

    constructor.add_params = add_params_or_layers


def add_recomputation(module: ModuleType) -> None:
    """Make mmengine's ``activation_checkpointing`` recompute parts of our backbones as ``with_cp``
    does. Its own way gives no gradient to a part whose inputs need none, such as a stem, or are in
    a list, and updates the statistics of a BatchNorm twice.
    """

    def turn_on(part: nn.Module) -> None:
        from .backbones.base import recompute

        part.forward = wraps(part.forward)(partial(recompute, part.forward, part))

    _wrap(module.turn_on_activation_checkpointing, turn_on)


def add_folding(module: ModuleType) -> None:
    """Make mmengine's ``efficient_conv_bn_eval`` find the convolutions and norms within our
    backbones, which can't be traced as a whole.
    """

    def turn_on(part: nn.Module) -> None:
        from .backbones.mixing_convnets import MixingConvNet

        for child in list(part.modules()):
            layers = child if type(child) is nn.Sequential else ()
            follows = any(
                isinstance(layer, nn.Conv2d) and type(norm) is nn.BatchNorm2d
                for layer, norm in pairwise(layers)
            )
            if follows or (isinstance(part, MixingConvNet) and child is part.convnet):
                module.turn_on_efficient_conv_bn_eval_for_single_model(child)

    _wrap(module.turn_on_efficient_conv_bn_eval, turn_on)


def _wrap(original: Callable, turn_on: Callable[[nn.Module], None]) -> None:
    """Replace a function of mmengine that changes parts of a model, for parts of our backbones.

    Args:
        original (Callable): Takes a model, and the name or names of parts.
        turn_on (Callable): Takes a part of a backbone, or one that has a backbone in it.
    """

    @wraps(original)
    def turn_on_or_original(model: nn.Module, modules: str | Sequence[str]) -> None:
        from .weights.loading import FittedBackbone

        for name in [modules] if isinstance(modules, str) else modules:
            part = model.get_submodule(name)
            nets = [net for net in model.modules() if isinstance(net, FittedBackbone)]
            if any(part in [*net.modules()] or net in [*part.modules()] for net in nets):
                turn_on(part)
            else:
                original(model, name)

    for name, holder in list(sys.modules.items()):
        if name.startswith('mmengine.') and getattr(holder, original.__name__, None) is original:
            setattr(holder, original.__name__, turn_on_or_original)


ADDITIONS = {
    **CORRECTIONS,
    'mmengine.hub': add_to_hub,
    'mmengine.runner.checkpoint': add_loaders,
    'mmengine.model.efficient_conv_bn_eval': add_folding,
    'mmengine.runner.activation_checkpointing': add_recomputation,
    'mmpretrain.apis.model': add_models,
    'mmdet.engine.optimizers.layer_decay_optimizer_constructor': add_layer_decay,
    'mmseg.engine.optimizers.layer_decay_optimizer_constructor': add_layer_decay,
}


class _Finder(MetaPathFinder):
    """Finder of the modules of :data:`ADDITIONS` that are not imported yet."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = set(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.names:
            return None
        self.names.remove(name)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                ADDITIONS[name](module)

            spec.loader.exec_module = load_and_add  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Make each addition of :data:`ADDITIONS`, now if its module is imported, else once it is.

    Calling again changes nothing.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name in ADDITIONS.keys() & sys.modules.keys():
        ADDITIONS[name](sys.modules[name])
    sys.meta_path.insert(0, _Finder(sorted(ADDITIONS.keys() - sys.modules.keys())))
