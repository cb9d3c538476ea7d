"""Stand-ins for packages that OpenMMLab needs and that are missing.

- ``mmcv._ext``, mmcv's compiled ops, which plain pip does not build for recent Python and torch.
- ``panopticapi``, which is not on PyPI.
- ``xtcocotools``, whose wheels do not load beside numpy 2.

:func:`install` puts them into ``sys.modules``. A package that is installed is left alone.
"""

import ast
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ['STAND_INS', 'StandIn', 'install']

# For each package: the module here that replaces it, and the submodules of the package that are
# imported by name. The one module has the contents of all of them.
STAND_INS = {
    'mmcv._ext': ('focal_mm.compat.mmcv_ops', ()),
    'panopticapi': ('focal_mm.compat.panopticapi', ('utils', 'evaluation')),
    'xtcocotools': ('focal_mm.compat.xtcocotools', ('coco', 'cocoeval', 'mask')),
}


class StandIn(ModuleType):
    """Module that takes its attributes from another module, imported on first use.

    Args:
        name (str): Name in ``sys.modules``.
        source (str): Name of the module that is imported when an attribute is read.
    """

    def __init__(self, name: str, source: str) -> None:
        super().__init__(name, f'Stand-in for {name}: {source}.')
        found = find_spec(source)
        assert found is not None
        # mmcv looks for its ops by the loader in the spec.
        self.__spec__ = ModuleSpec(name, found.loader, origin=found.origin)
        self.__file__ = found.origin
        self._source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        return getattr(import_module(self._source), name)


def install() -> list[str]:
    """Put a stand-in under the name of each package of :data:`STAND_INS` that is missing.

    Nothing is imported until a stand-in is used. Calling again changes nothing.

    Returns:
        list[str]: The packages that are stand-ins now.

    Raises:
        ImportError: If an OpenMMLab module was imported first and has put placeholders in place of
            the ops that it did not find. Nothing is installed then.
    """
    missing = [name for name in STAND_INS if _is_missing(name)]
    if 'mmcv._ext' in missing:
        _refuse_lost_ops()
    for name in missing:
        source, submodules = STAND_INS[name]
        package = sys.modules[name] = StandIn(name, source)
        for submodule in submodules:
            path = f'{name}.{submodule}'
            sys.modules[path] = StandIn(path, source)
            setattr(package, submodule, sys.modules[path])
    return [name for name in STAND_INS if isinstance(sys.modules.get(name), StandIn)]


def _is_missing(name: str) -> bool:
    """Return whether no module has this name; False also if its parent package is missing."""
    if name in sys.modules:
        return False
    try:
        return find_spec(name) is None
    except ModuleNotFoundError:
        return False


def _refuse_lost_ops() -> None:
    """Raise an ImportError if a loaded OpenMMLab module failed to import an op and went on.

    Such a module holds None in place of the op, or a function or class of its own that raises
    when it is used.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith('mm')]:
        for op, name in _guarded_ops(module):
            held = vars(module).get(name, ...)
            if held is None or getattr(held, '__module__', None) == module.__name__:
                raise ImportError(
                    f'{module.__name__} was imported before focal_mm and has given up on {op}: '
                    'import focal_mm first, ahead of mmdet, mmseg and mmpretrain, or use '
                    "focal_mm's tools/train.py and tools/test.py"
                )


def _guarded_ops(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield each op that a module imports inside ``try``, with its name in the module."""
    path = Path(getattr(module, '__file__', None) or '')
    source = path.read_text(encoding='utf-8') if path.suffix == '.py' and path.is_file() else ''
    if 'mmcv.ops' not in source:
        return
    for guard in ast.parse(source).body:
        for node in guard.body if isinstance(guard, ast.Try) else ():
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                yield from (
                    (f'{node.module}.{alias.name}', alias.asname or alias.name)
                    for alias in node.names
                )
