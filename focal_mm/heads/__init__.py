"""Heads, necks and losses that mmpretrain and mmdet lack.

They subclass classes of these libraries, which are slow to import. So :func:`register` imports
none of the modules here: mmengine's registry imports a module when one of its classes is built.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmengine.registry import MODELS

CLASSES = {
    'classifier': ('TokenClsHead',),
    'dino': ('FocalDINO',),
    'reppoints_v2': ('BiFPN', 'RepPointsV2Head', 'SeparateFocalLoss'),
}


def register() -> None:
    """Register a function that builds each class of :data:`CLASSES` under the name of the class."""
    for module, names in CLASSES.items():
        for name in names:
            MODELS.register_module(name, module=_builder(f'{__name__}.{module}', name))


def _builder(module: str, name: str) -> Callable[..., Any]:

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return build
