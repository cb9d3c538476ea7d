"""Our classifiers in mmpretrain's list of models.

mmpretrain's ``list_models``, ``get_model`` and ``inference_model`` take the names of
``configs/imagenet/metafile.yml``; ``pretrained=True`` loads the published weights.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from .config import CONFIGS

_MODULE = 'mmpretrain.apis.model'
_METAFILE = CONFIGS / 'imagenet' / 'metafile.yml'


def register() -> None:
    """Add our classifiers to mmpretrain's list, now if mmpretrain is imported, else once it is.

    mmpretrain has no entry point for this, and importing it takes seconds, which users of mmdet
    need not wait for. Calling again changes nothing.
    """
    if _MODULE in sys.modules:
        _add_models(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _add_models(module: ModuleType) -> None:
    hub = module.ModelHub
    if not any(str(model.filepath) == str(_METAFILE) for model in hub._models_dict.values()):
        hub.register_model_index(_METAFILE, config_prefix=CONFIGS.parent)


class _Finder(MetaPathFinder):
    """Finder of one module, which adds our models after it and removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                _add_models(module)

            spec.loader.exec_module = load_and_add  # type: ignore[method-assign]
        return spec
