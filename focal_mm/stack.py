"""What focal_mm asks of the OpenMMLab stack below it, and what it tells mmengine about itself."""
import difflib
import importlib
import re
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The oldest version that works, and the packages that own the folder: stock ones, OneDL's last.
_STACK = {
    'torch': ('2.5', 'torch'),  # the first to read checkpoints safely and mmengine's all the same
    'mmengine': ('0.10', 'mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('2.0', 'mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('3.0', 'mmdet', 'onedl-mmdetection'),
    'mmseg': ('1.0', 'mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('1.0', 'mmpretrain', 'onedl-mmpretrain'),
}
_PREFIX = 'focal_mm::'
# An installed focal_mm brings configs/ along as mim expects; in a source tree it lies beside us.
_MIM = Path(__file__).parent / '.mim'
CONFIGS = (_MIM if _MIM.is_dir() else Path(__file__).parents[1]) / 'configs'


def check() -> None:
    """Makes sure that there is a stack to stand on: mmengine and mmcv, and nothing too old.

    Warns where two packages have written to the same folder, such as mmcv and mmcv-lite.

    Raises:
        ImportError: In one line, with the command that installs what is missing.
    """
    found = {module: [name for name in packages if _version(name)]
             for module, (_, *packages) in _STACK.items()}
    stock = any(not name.startswith('onedl-') for module, names in found.items()
                for name in names if module != 'torch')
    for module, (oldest, *_) in _STACK.items():
        if len(found[module]) > 1:
            warnings.warn(f'{" and ".join(found[module])} overwrite each other in {module}/: '
                          'uninstall all of them, then install one', stacklevel=3)
        if module in ('mmengine', 'mmcv'):
            try:
                version = importlib.import_module(module).__version__
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
                version = None
        elif found[module]:
            version = _version(found[module][0])
        else:
            continue
        if version is None or _numbers(version) < _numbers(oldest):
            state = f'{version} is' if version else 'none is'
            raise ImportError(
                f'focal_mm needs {module} {oldest} or later, and {state} installed: '
                f'pip install "focal-mm[{"openmmlab" if stock else "onedl"}]"')


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', version)[:2]]


def register_configs() -> None:
    """Makes mmengine read configs by names such as ``focal_mm::mask_rcnn/focalnet_t_1x.py``.

    ``Config.fromfile``, ``_base_`` and ``mmengine.hub.get_config`` take them afterwards. mmengine
    knows the notation of its own packages from a table, but the table is not enough: it needs
    ``.mim`` inside the package, which a source tree has not; it gives every inherited dict the
    package as its registry's scope, and focal_mm has none; and ``Config.fromfile`` takes no such
    name at all. So the three functions are wrapped, and pass on what is not ours
    (``Config.fromfile`` takes names of other packages too).
    """
    from mmengine import hub
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    if 'focal_mm' in MODULE2PACKAGE:
        return
    MODULE2PACKAGE['focal_mm'] = 'focal_mm'
    if find_spec('mmseg'):  # the table says mmsegmentation, which is not what OneDL calls it
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    get_cfg_path, fromfile, get_config = Config._get_cfg_path, Config.fromfile, hub.get_config

    @wraps(get_cfg_path)
    def path_of_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(_PREFIX):
            return _find(cfg_path), None
        return get_cfg_path(cfg_path, filename)

    @wraps(fromfile)
    def fromfile_or_package(filename: str | Path, *args: Any, **kwargs: Any) -> Config:
        if '::' in str(filename):
            filename, _ = path_of_base(str(filename), '')
        return fromfile(filename, *args, **kwargs)

    @wraps(get_config)
    def get_config_or_ours(cfg_path: str, pretrained: bool = False) -> Config:
        if not cfg_path.startswith(_PREFIX):
            return get_config(cfg_path, pretrained)
        if pretrained:
            raise ValueError(f'{cfg_path}: focal_mm publishes no trained models; '
                             'its configs start from the backbone weights in init_cfg')
        return fromfile_or_package(cfg_path)

    Config._get_cfg_path = staticmethod(path_of_base)
    Config.fromfile = staticmethod(fromfile_or_package)
    hub.get_config = get_config_or_ours


def register_on_demand(module: str, *names: str) -> None:
    """Registers classes that need mmdet or mmpretrain without importing it: when one is built, their
    module is.

    Args:
        module (str): Where they are; it registers nothing itself.
        names (str): Of the classes.
    """
    from mmengine.registry import MODELS

    def stand_in(name: str) -> Callable:

        def build(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **kwargs)

        return build

    for name in names:
        MODELS.register_module(name, module=stand_in(name))


def _find(name: str) -> str:
    relative = name.removeprefix(_PREFIX)
    path = CONFIGS / relative
    if not path.is_file():
        known = [file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob('*.py')]
        near = difflib.get_close_matches(relative, known)
        hint = f'near it: {", ".join(near)}' if near else f'see {CONFIGS}'
        raise FileNotFoundError(f'focal_mm has no config {name}; {hint}')
    return str(path)
