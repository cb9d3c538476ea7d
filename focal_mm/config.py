"""Configs of OpenMMLab: names of the form ``PACKAGE::PATH``, their parts, and their data roots."""

import difflib
import os
from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE

_PREFIX = 'focal_mm::'
# An installed focal_mm has configs/ in .mim, as mim expects; in a source tree it is beside the
# package.
_MIM = Path(__file__).parent / '.mim'
CONFIGS = (_MIM if _MIM.is_dir() else Path(__file__).parents[1]) / 'configs'

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# The last transform of a pipeline, which packs an image for the models of one library.
_PACKERS = dict(
    PackDetInputs='mmdet', PackSegInputs='mmseg', PackInputs='mmpretrain', PackPoseInputs='mmpose'
)


def register_configs() -> None:
    """Make mmengine read configs by names such as ``focal_mm::mask_rcnn/focalnet_t_1x.py``.

    The names are then accepted by ``Config.fromfile`` and ``_base_``, and by
    ``mmengine.hub.get_config`` after :func:`add_to_hub`.
    mmengine knows this notation for its own packages from a table, which is not enough: it needs
    ``.mim`` inside the package, which a source tree does not have; it makes the package the
    registry scope of every inherited dict, but the models in these dicts are mmdet's and others';
    and ``Config.fromfile`` takes no such name at all. Therefore these functions are wrapped.
    They pass on every other name, and ``Config.fromfile`` also takes names of other packages.
    Calling again changes nothing.
    """
    if 'focal_mm' in MODULE2PACKAGE:
        return
    MODULE2PACKAGE['focal_mm'] = 'focal_mm'
    if find_spec('mmseg'):  # the table says mmsegmentation; OneDL's package has another name
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    get_cfg_path, fromfile = Config._get_cfg_path, Config.fromfile

    @cache
    def path_in_package(name: str) -> tuple[str, str | None]:
        # mmengine parses every metafile of the package, which takes a third of a second a name.
        return get_cfg_path(name, '')

    @wraps(get_cfg_path)
    def path_of_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(_PREFIX):
            return _path_of(cfg_path), None
        return path_in_package(cfg_path) if '::' in cfg_path else get_cfg_path(cfg_path, filename)

    @wraps(fromfile)
    def fromfile_or_package(filename: str | Path, *args: Any, **kwargs: Any) -> Config:
        if '::' in str(filename) and not Path(filename).is_file():
            filename, _ = path_of_base(str(filename), '')
        return fromfile(filename, *args, **kwargs)

    Config._get_cfg_path = staticmethod(path_of_base)
    Config.fromfile = staticmethod(fromfile_or_package)


def add_to_hub(module: Any) -> None:
    """Make ``mmengine.hub.get_config`` take names such as ``focal_mm::mask_rcnn/focalnet_t_1x.py``.

    Args:
        module (ModuleType): ``mmengine.hub``.
    """
    get_config = module.get_config

    @wraps(get_config)
    def get_config_or_ours(cfg_path: str, pretrained: bool = False) -> Config:
        if not cfg_path.startswith(_PREFIX):
            return get_config(cfg_path, pretrained)
        if pretrained:
            raise ValueError(
                f'{cfg_path}: focal_mm publishes no trained models; '
                'its configs start from the backbone weights in init_cfg'
            )
        return Config.fromfile(cfg_path)

    module.get_config = get_config_or_ours


def _path_of(name: str) -> str:
    relative = name.removeprefix(_PREFIX)
    path = CONFIGS / relative
    if not path.is_file():
        known = [file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob('*.py')]
        near = difflib.get_close_matches(relative, known)
        hint = f'near it: {", ".join(near)}' if near else f'see {CONFIGS}'
        raise FileNotFoundError(f'focal_mm has no config {name}; {hint}')
    return str(path)


def dicts(node: Any, seen: set[int] | None = None) -> Iterator[ConfigDict]:
    """Yield every dict in a part of a config, the part included.

    A dict that is used in several places is yielded once.

    Args:
        node (Any): A dict, list, tuple or value of a config.
        seen (set[int], optional): The ``id`` of each dict to skip; grows. Default: none.
    """
    seen = set() if seen is None else seen
    if isinstance(node, dict):
        if id(node) in seen:
            return
        seen.add(id(node))
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts(child, seen)


def type_name(node: ConfigDict) -> str:
    """Return the name of the type that a dict builds, without its scope, or ``''`` if it has none.

    The type is a string, or a class in newer configs.
    """
    name = node.get('type', '')
    return name.rpartition('.')[-1] if isinstance(name, str) else getattr(name, '__name__', '')


def is_pretrained(init_cfg: Any) -> bool:
    """Return whether an ``init_cfg``, a dict or a list, loads a checkpoint."""
    return any(type_name(node) in ('Pretrained', 'PretrainedInit') for node in dicts(init_cfg))


def loader_types(cfg: Config) -> set[str]:
    """Return the names of all types in a config's data loaders: datasets, transforms, samplers."""
    return {type_name(node) for node in dicts([cfg.get(key) for key in DATALOADERS])}


def library(cfg: Config) -> str | None:
    """Return the library whose models a config packs its images for.

    Returns:
        str or None: ``'mmdet'``, ``'mmseg'``, ``'mmpretrain'``, ``'mmpose'``, or None for others.
    """
    types = loader_types(cfg)
    return next((_PACKERS[name] for name in types if name in _PACKERS), None)


def datasets_of(loader: ConfigDict | None) -> Iterator[ConfigDict]:
    """Yield the datasets that a data loader reads, without the datasets that only wrap others."""
    for node in dicts(loader):
        keys = node.keys()
        if keys & {'pipeline', 'ann_file', 'data_prefix'} and not keys & {'dataset', 'datasets'}:
            yield node


def change_paths(cfg: Config, change: Callable[[str], str]) -> None:
    """Apply a function, in place, to every string and path of a config, also those in lists.

    Args:
        cfg (Config): Any OpenMMLab config.
        change (Callable): Takes a string and returns one.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, (str, PurePath)):
            return change(str(value))
        if type(value) in (list, tuple):
            return type(value)(map(changed, value))
        return value

    for node in dicts(cfg._cfg_dict):
        for key, value in list(node.items()):
            if (new := changed(value)) != value:
                node[key] = new


def move_data_root(cfg: Config, root: str) -> None:
    """Change, in place, every path that lies in the config's ``data_root`` to lie in ``root``.

    A config without a ``data_root`` stays as it is.
    """
    if not cfg.get('data_root'):
        return
    old, new = (os.path.expanduser(path).rstrip('/') for path in (cfg.data_root, root))

    def moved(path: str) -> str:
        whole = os.path.expanduser(path)
        return new + whole[len(old) :] if f'{whole}/'.startswith(f'{old}/') else path

    change_paths(cfg, moved)
