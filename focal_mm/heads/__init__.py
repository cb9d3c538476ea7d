"""Heads, necks and losses that mmpretrain and mmdet lack: ``type='focal_mm.NAME'`` in a config.

They subclass classes of these libraries, which are slow to import and may be missing. Therefore a
function is registered for each, which imports the class when one is built.
"""

from importlib import import_module
from typing import Any

from ..registry import MODELS

CLASSES = {
    'classifier': ('TokenClsHead',),
    'dino': ('FocalDINO',),
    'reppoints_v2': ('BiFPN', 'RepPointsV2Head', 'SeparateFocalLoss'),
}


def _register(module: str, name: str) -> None:

    @MODELS.register_module(name)
    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)


for _module, _names in CLASSES.items():
    for _name in _names:
        _register(f'{__name__}.{_module}', _name)
