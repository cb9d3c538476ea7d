"""What focal_mm adds to modules of mmcv, mmpretrain, mmdet and mmseg that have no entry point.

These modules take seconds to import, so that the additions wait until somebody imports them:

- mmpretrain's ``list_models``, ``get_model`` and ``inference_model`` take the names of
  ``configs/imagenet/metafile.yml``; ``pretrained=True`` loads the published weights.
- ``LearningRateDecayOptimizerConstructor`` of mmdet and mmseg takes models with a backbone of
  focal_mm, see :mod:`focal_mm.backbones.layer_decay`.
- Corrections of ``mmcv.ops``, see :mod:`focal_mm.compat.mmcv_corrections`.
"""

import sys
from collections.abc import Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from torch import nn

from .backbones.base import StagedBackbone
from .backbones.layer_decay import add_layers
from .compat.mmcv_corrections import CORRECTIONS
from .config import CONFIGS

_METAFILE = CONFIGS / 'imagenet' / 'metafile.yml'


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
        if isinstance(getattr(model, 'backbone', None), StagedBackbone):
            add_layers(self, params, model)
        else:
            add_params(self, params, model, **kwargs)

    constructor.add_params = add_params_or_layers


ADDITIONS = {
    **CORRECTIONS,
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
