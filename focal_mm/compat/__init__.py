"""Stand-ins for packages that OpenMMLab needs and that are missing.

- ``mmcv._ext``, mmcv's compiled ops, which plain pip does not build for recent Python and torch.
- ``panopticapi``, which is not on PyPI.
- ``xtcocotools``, whose wheels do not load beside numpy 2.

:func:`install` puts them into ``sys.modules``. A package that is installed is left alone. A module
that was imported before, and wrapped the import of such a package in ``try``, tries again.
"""

import ast
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ['STAND_INS', 'StandIn', 'install']

# In an `import` of the ops, their package takes the place of the extension.
_IMPORTED_AS = {'mmcv._ext': 'mmcv.ops'}

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

    Nothing is imported until a stand-in is used, unless a module tries again; see
    :func:`_try_again`. Calling again changes nothing.

    Returns:
        list[str]: The packages that are stand-ins now.
    """
    missing = [name for name in STAND_INS if _is_missing(name)]
    for name in missing:
        source, submodules = STAND_INS[name]
        package = sys.modules[name] = StandIn(name, source)
        for submodule in submodules:
            path = f'{name}.{submodule}'
            sys.modules[path] = StandIn(path, source)
            setattr(package, submodule, sys.modules[path])
    if missing:
        _try_again([_IMPORTED_AS.get(name, name) for name in missing])
    return [name for name in STAND_INS if isinstance(sys.modules.get(name), StandIn)]


def _is_missing(name: str) -> bool:
    """Return whether no module has this name; False also if its parent package is missing.

    The parent package is not imported: mmcv takes as long as all of the rest.
    """
    if name in sys.modules:
        return False
    parent = name.rpartition('.')[0]
    if not parent:
        return find_spec(name) is None
    spec = find_spec(parent)
    return spec is not None and (
        PathFinder.find_spec(name, spec.submodule_search_locations) is None
    )


def _try_again(packages: list[str]) -> None:
    """Repeat the imports of packages that failed in the modules that are loaded.

    Each such module holds None in place of what it imports, or a function or class of its own that
    raises when it is used. Other modules may hold the same object; they get the import too.

    Args:
        packages (list[str]): Packages that could not be imported until now.
    """
    imported: dict[int, tuple[Any, Any]] = {}  # by id: a function or class, and what replaces it
    modules = [module for name, module in sys.modules.items() if _may_use_mmcv(name, module)]
    for module in modules:
        for guard in _guards(module, packages):
            before = dict(vars(module))
            try:
                exec(compile(guard, str(module.__file__), 'exec'), vars(module))
            except ImportError:  # the stand-in lacks it as well
                continue
            for name, held in before.items():
                own = getattr(held, '__module__', None) == module.__name__
                if own and held is not vars(module)[name]:
                    imported[id(held)] = held, vars(module)[name]
    for module in list(sys.modules.values()) if imported else ():
        for name, held in list(getattr(module, '__dict__', {}).items()):
            if id(held) in imported:
                setattr(module, name, imported[id(held)][1])
    derived: type
    lost = {module.__name__ for module in modules if _lacks_mmdet(module)}
    for placeholder in [held for held, _ in imported.values() if isinstance(held, type)]:
        for derived in placeholder.__subclasses__():
            lost.add(derived.__module__)
    if lost:
        warnings.warn(
            f'{", ".join(sorted(lost))}: imported before focal_mm, with classes that will not work '
            'because their base could not be imported; to use them, import focal_mm first',
            stacklevel=4,
        )


def _lacks_mmdet(module: ModuleType) -> bool:
    """Return whether a module of another package failed to import from mmdet and went on.

    mmdet's models cannot be imported without the ops, so mmseg and mmpretrain do without them.
    """
    if 'mmdet' not in sys.modules or module.__name__.startswith('mmdet.'):
        return False
    for guard in _guards(module, ['mmdet']):
        for node in guard.body:
            path = getattr(node, 'module', None) or ''
            parents = ['.'.join(path.split('.')[:count]) for count in range(1, path.count('.') + 2)]
            absent = [name for name in parents if name not in sys.modules]
            if path.startswith('mmdet.') and absent and find_spec(absent[0]):
                return True
    return False


def _may_use_mmcv(name: str, module: ModuleType) -> bool:
    """Return whether a module is OpenMMLab's or part of a project, and is completely imported.

    Reading the source of every module takes 2 s the first time.
    """
    top = name.partition('.')[0]
    path = Path(getattr(module, '__file__', None) or '')
    return (
        path.suffix == '.py'
        and (top.startswith('mm') or {'site-packages', 'dist-packages'}.isdisjoint(path.parts))
        and top not in sys.stdlib_module_names | {'__main__', 'focal_mm'}
        and not getattr(getattr(module, '__spec__', None), '_initializing', False)
    )


def _guards(module: ModuleType, packages: list[str]) -> Iterator[ast.Module]:
    """Yield the imports, and assignments such as ``has_ops = True``, in each ``try`` of a module
    that imports one of some packages.
    """
    path = Path(str(module.__file__))
    source = path.read_text(encoding='utf-8') if path.is_file() else ''
    if not any(package in source for package in packages):
        return
    for guard in [node for node in ast.parse(source).body if isinstance(node, ast.Try)]:
        names = [name for node in guard.body for name in _imported_by(node)]
        if any(f'{name}.'.startswith(f'{package}.') for name in names for package in packages):
            yield ast.Module([node for node in guard.body if _has_no_effect(node)], type_ignores=[])


def _has_no_effect(node: ast.stmt) -> bool:
    """Return whether a statement only binds names, and so may run twice."""
    calls = any(isinstance(part, ast.Call) for part in ast.walk(node))
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)) and not calls


def _imported_by(node: ast.stmt) -> list[str]:
    """Return the full names of what a statement imports; none if it is no import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f'{node.module}.{alias.name}' for alias in node.names]
    return []
