"""The registry of focal_mm: ``focal_mm.NAME`` from every scope of OpenMMLab.

mmengine imports this module for such a name, so that it is found before ``import focal_mm`` too.
"""

import warnings
from functools import wraps
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
MODELS = Registry('model', parent=ROOT, scope='focal_mm', locations=['focal_mm.heads'])


def register_in_root(*classes: type) -> None:
    """Give classes their plain names in mmengine's root registry, where every scope finds them.

    A class that somebody else registers under the same name keeps it, whether it comes first or
    later, in the root registry or in the registry of a library. A warning says which class has the
    name. Calling again changes nothing.

    Args:
        *classes (type): Classes of :data:`MODELS`.
    """
    ours = {cls.__name__: cls for cls in classes}
    register = Registry._register_module

    @wraps(register)
    def register_theirs(
        registry: Registry, module: Any, module_name: Any = None, force: bool = False
    ) -> None:
        names = module.__name__ if module_name is None else module_name
        taken = ours.keys() & ({names} if isinstance(names, str) else set(names))
        if registry is MODELS or registry._get_root_registry() is not ROOT:
            taken = set()
        for name in taken:
            if registry.module_dict.get(name) is ours[name]:
                del registry.module_dict[name]
        register(registry, module, module_name, force)
        for name in taken:
            _warn_of(name, module, registry)

    for name, cls in ours.items():
        ROOT.module_dict.setdefault(name, cls)
        for registry in (ROOT, *ROOT.children.values()):
            held = registry.module_dict.get(name, cls)
            if held is not cls:
                _warn_of(name, held, registry)
    Registry._register_module = register_theirs


def _warn_of(name: str, theirs: Any, registry: Registry) -> None:
    warnings.warn(
        f"type='{name}' builds {theirs!r}, which is registered in scope {registry.scope}; for "
        f"focal_mm's class of this name write type='focal_mm.{name}'",
        stacklevel=4,  # the line that registers the other class, or imports focal_mm
    )
