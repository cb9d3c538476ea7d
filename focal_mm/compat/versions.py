"""The versions of torch and the OpenMMLab packages that focal_mm needs."""

import importlib
import re
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec

# For each module: the oldest version that works, and the packages that install it, OneDL's last.
STACK = {
    'torch': ('2.5', 'torch'),  # the first to read both safe checkpoints and mmengine's
    'mmengine': ('0.10', 'mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('2.0', 'mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('3.0', 'mmdet', 'onedl-mmdetection'),
    'mmseg': ('1.0', 'mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('1.0', 'mmpretrain', 'onedl-mmpretrain'),
}


def require_stack() -> None:
    """Raise an error unless mmengine and mmcv are there and no package is too old.

    Warns if two packages have written to the same folder, such as mmcv and mmcv-lite.

    Raises:
        RuntimeError: In one line, with the command that installs the missing package. mmengine
            replaces an ImportError of ``custom_imports`` by advice on PYTHONPATH.
    """
    found = {
        module: [name for name in packages if version_of(name)]
        for module, (_, *packages) in STACK.items()
    }
    stock = any(
        not name.startswith('onedl-')
        for module, names in found.items()
        for name in names
        if module != 'torch'
    )
    for module, (oldest, *_) in STACK.items():
        if len(found[module]) > 1:
            warnings.warn(
                f'{" and ".join(found[module])} overwrite each other in {module}/: '
                'uninstall all of them, then install one',
                stacklevel=3,
            )
        if module in ('mmengine', 'mmcv'):
            version = _version_of_module(module, found[module])
        elif found[module]:
            version = version_of(found[module][0])
        else:
            continue
        if version is None or numbers(version) < numbers(oldest):
            state = f'{version} is' if version else 'none is'
            raise RuntimeError(
                f'focal_mm needs {module} {oldest} or later, and {state} installed: '
                f'pip install "focal-mm[{"openmmlab" if stock else "onedl"}]"'
            )


def _version_of_module(module: str, packages: list[str]) -> str | None:
    """Return the version of a module, without importing it if it is that of a package."""
    try:
        if module not in sys.modules and packages:
            return version_of(packages[0]) if find_spec(module) else None
        return importlib.import_module(module).__version__
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> list[int]:
    """Return the first two numbers of a version, to compare it with another one."""
    return [int(number) for number in re.findall(r'\d+', version)[:2]]
