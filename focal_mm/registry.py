"""The registry of focal_mm: ``focal_mm.NAME`` from every scope of OpenMMLab.

mmengine imports this module for such a name, so that it is found before ``import focal_mm`` too.
"""

import warnings
from collections.abc import Iterator
from functools import wraps
from importlib import import_module
from typing import Any

from mmengine.registry import DATA_SAMPLERS as ROOT_OF_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_OF_DATASETS
from mmengine.registry import HOOKS as ROOT_OF_HOOKS
from mmengine.registry import MODELS as ROOT
from mmengine.registry import RUNNERS as ROOT_OF_RUNNERS
from mmengine.registry import STRATEGIES as ROOT_OF_STRATEGIES
from mmengine.registry import TRANSFORMS as ROOT_OF_TRANSFORMS
from mmengine.registry import Registry

__all__ = [
    'BACKBONES',
    'DATASETS',
    'DATA_SAMPLERS',
    'HOOKS',
    'MODELS',
    'RUNNERS',
    'STRATEGIES',
    'TRANSFORMS',
    'register_in_root',
]

_ENGINE: dict = dict(scope='focal_mm', locations=['focal_mm.engine'])
_TRANSFORMS: dict = dict(
    scope='focal_mm', locations=['focal_mm.engine.skip_corrupt', 'focal_mm.datasets.transforms']
)
_DATA: dict = dict(scope='focal_mm', locations=['focal_mm.datasets.shards'])
DATASETS = Registry('dataset', parent=ROOT_OF_DATASETS, **_DATA)
DATA_SAMPLERS = Registry('data sampler', parent=ROOT_OF_DATA_SAMPLERS, **_DATA)
HOOKS = Registry('hook', parent=ROOT_OF_HOOKS, **_ENGINE)
RUNNERS = Registry('runner', parent=ROOT_OF_RUNNERS, **_ENGINE)
STRATEGIES = Registry('strategy', parent=ROOT_OF_STRATEGIES, **_ENGINE)
TRANSFORMS = Registry('transform', parent=ROOT_OF_TRANSFORMS, **_TRANSFORMS)
MODELS = Registry(
    'model', parent=ROOT, scope='focal_mm', locations=['focal_mm.backbones', 'focal_mm.heads']
)
# Classes of focal_mm.backbones.
BACKBONES = ('FocalNet', 'FocalTransformer', 'MixFormer', 'MixingResNet', 'MixingMobileNetV2')


class _Later:
    """Entry of a registry for a backbone that is imported when somebody reads it."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Classes(dict):
    """Table of a registry, in which a :class:`_Later` becomes its class when it is read."""

    def __getitem__(self, name: str) -> Any:
        held = super().__getitem__(name)
        if isinstance(held, _Later):
            self[name] = held = getattr(import_module('focal_mm.backbones'), held.name)
        return held

    def __iter__(self) -> Iterator[str]:  # a copy asks for each value, as it is not dict's own
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def items(self) -> Any:
        return dict(self).items()

    def values(self) -> Any:
        return dict(self).values()


def register_in_root(*names: str) -> None:
    """Give backbones their plain names in mmengine's root registry, where every scope finds them.

    A class that somebody else registers under the same name keeps it, whether it comes first or
    later, in the root registry or in the registry of a library. A warning says which class has the
    name. Calling again changes nothing.

    Args:
        *names (str): Names of :data:`BACKBONES`.
    """
    register = Registry._register_module

    @wraps(register)
    def register_theirs(
        registry: Registry, module: Any, module_name: Any = None, force: bool = False
    ) -> None:
        theirs = module.__name__ if module_name is None else module_name
        taken = set(names) & ({theirs} if isinstance(theirs, str) else set(theirs))
        if registry is MODELS or registry._get_root_registry() is not ROOT:
            taken = set()
        for name in taken:
            if _is_ours(registry, name):
                del registry.module_dict[name]
        register(registry, module, module_name, force)
        for name in taken:
            _warn_of(name, module, registry)

    if not isinstance(ROOT.module_dict, _Classes):
        ROOT._module_dict = _Classes(ROOT.module_dict)
    for name in names:
        ROOT.module_dict.setdefault(name, _Later(name))
        for registry in (ROOT, *ROOT.children.values()):
            if name in registry.module_dict and not _is_ours(registry, name):
                _warn_of(name, registry.module_dict[name], registry)
    Registry._register_module = register_theirs


def _is_ours(registry: Registry, name: str) -> bool:
    """Return whether a name is that of a backbone of ours in a registry, imported or not."""
    held = dict.get(registry.module_dict, name)
    return isinstance(held, _Later) or (held is not None and held is MODELS.module_dict.get(name))


def _warn_of(name: str, theirs: Any, registry: Registry) -> None:
    warnings.warn(
        f"type='{name}' builds {theirs!r}, which is registered in scope {registry.scope}; for "
        f"focal_mm's class of this name write type='focal_mm.{name}'",
        stacklevel=4,  # the line that registers the other class, or imports focal_mm
    )
