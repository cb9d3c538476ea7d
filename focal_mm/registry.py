"""The registry of focal_mm: ``focal_mm.NAME`` from every scope of OpenMMLab.

mmengine imports this module for such a name, so that it is found before ``import focal_mm`` too.
"""

import warnings
from functools import wraps
from typing import Any

from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry

__all__ = ['MODELS', 'register_in_root']

MODELS = Registry('model', parent=ROOT, scope='focal_mm', locations=['focal_mm.heads'])


def register_in_root(*classes: type) -> None:
    """Give classes their plain names in mmengine's root registry, where every scope finds them.

    A class that somebody else registers there under the same name keeps it, whether it comes
    first or later, and a warning says which class has the name.

    Args:
        *classes (type): Classes of :data:`MODELS`.
    """
    ours = {cls.__name__: cls for cls in classes}
    register = ROOT._register_module

    @wraps(register)
    def register_theirs(module: Any, module_name: Any = None, force: bool = False) -> None:
        names = module.__name__ if module_name is None else module_name
        for name in [names] if isinstance(names, str) else names:
            if name in ours and ROOT.module_dict.get(name) is ours[name]:
                del ROOT.module_dict[name]
                _warn_of(name, module)
        register(module, module_name, force)

    for name, cls in ours.items():
        held = ROOT.module_dict.setdefault(name, cls)
        if held is not cls:
            _warn_of(name, held)
    ROOT._register_module = register_theirs


def _warn_of(name: str, theirs: Any) -> None:
    warnings.warn(
        f"type='{name}' builds {theirs!r}, which is registered in mmengine's root registry; for "
        f"focal_mm's class of this name write type='focal_mm.{name}'",
        stacklevel=4,  # the line that registers the other class, or imports focal_mm
    )
