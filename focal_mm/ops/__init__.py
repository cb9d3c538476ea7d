"""mmcv's compiled ops on torchvision, for an mmcv that was installed without them.

``mmcv.ops`` takes its kernels from the extension module ``mmcv._ext``. Plain pip builds none for
recent Python and torch, so :func:`install` offers :mod:`focal_mm.ops.extension` under that name.
A compiled mmcv is left alone.
"""
import ast
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Iterator

__all__ = ['install']

_NAME = 'mmcv._ext'
_extension: ModuleType | None = None


def install() -> bool:
    """Put the stand-in for ``mmcv._ext`` into ``sys.modules`` where mmcv has no compiled one.

    Neither mmcv nor torchvision is imported. Calling again changes nothing.

    Returns:
        bool: Whether ``mmcv._ext`` is ours; False where mmcv is compiled or not installed.

    Raises:
        ImportError: If an OpenMMLab package was imported first and has replaced the ops that it
            did not find by stand-ins of its own. Nothing is installed then.
    """
    global _extension
    if _NAME in sys.modules:
        return sys.modules[_NAME] is _extension
    mmcv = importlib.util.find_spec('mmcv')
    if mmcv is None or PathFinder.find_spec(_NAME, mmcv.submodule_search_locations):
        return False
    _refuse_lost_ops()
    spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name('extension.py'))
    _extension = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(_extension)
    return True


def _refuse_lost_ops() -> None:
    """Raise if a loaded module of OpenMMLab tried to import an op, failed, and made do without.

    Such a module holds None in the place of the op, or a function or class of its own that raises
    when it is used.
    """
    for module in [m for name, m in sys.modules.items() if name.startswith('mm')]:
        for op, name in _guarded_ops(module):
            held = vars(module).get(name, ...)
            if held is None or getattr(held, '__module__', None) == module.__name__:
                raise ImportError(
                    f'{module.__name__} was imported before focal_mm and has given up on {op}: '
                    'import focal_mm first, ahead of mmdet, mmseg and mmpretrain, or use '
                    "focal_mm's tools/train.py and tools/test.py")


def _guarded_ops(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The ops that a module imports inside ``try``, each with its name in the module."""
    path = Path(getattr(module, '__file__', None) or '')
    source = path.read_text(encoding='utf-8') if path.suffix == '.py' and path.is_file() else ''
    if 'mmcv.ops' not in source:
        return
    for guard in ast.parse(source).body:
        for node in guard.body if isinstance(guard, ast.Try) else ():
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                yield from ((f'{node.module}.{alias.name}', alias.asname or alias.name)
                            for alias in node.names)
