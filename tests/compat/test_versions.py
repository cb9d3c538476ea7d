import sys
from pathlib import Path

import mmengine
import pytest

from focal_mm.compat.versions import require_stack

pytestmark = pytest.mark.stock


def pretend_installed(folder: Path, **versions: str) -> None:
    """Writes what pip knows of a package; an underscore stands for the hyphen of its name."""
    for name, version in versions.items():
        info = folder / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')


def test_mmengine_alone_is_not_a_stack(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(RuntimeError, match='^focal_mm needs mmcv 2.0 or later, and none is'):
        require_stack()


@pytest.mark.parametrize('version', ['0.9.1', '0.9.0rc4'])
def test_old_mmengine_is_refused(monkeypatch, version):
    monkeypatch.setattr(mmengine, '__version__', version)
    with pytest.raises(RuntimeError, match=f'mmengine 0.10 or later, and {version} is installed'):
        require_stack()


@pytest.mark.filterwarnings('ignore:.*overwrite each other')
@pytest.mark.parametrize('module, package', [('mmdet', 'mmdet'), ('mmseg', 'mmsegmentation')])
def test_old_downstream_package_is_refused(monkeypatch, tmp_path, module, package):
    pretend_installed(tmp_path, **{package: '0.29.1'})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=rf'needs {module} \d.0 or later, and 0.29.1 is'):
        require_stack()


@pytest.mark.parametrize(
    'installed, extra',
    [({}, 'onedl'), ({'onedl_mmengine': '0.10.12'}, 'onedl'), ({'mmengine': '0.9.0'}, 'openmmlab')],
)
def test_advice_stays_with_the_stack_that_is_there(monkeypatch, tmp_path, installed, extra):
    pretend_installed(tmp_path, **installed)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(RuntimeError, match=rf'pip install "focal-mm\[{extra}\]"$'):
        require_stack()


def test_two_packages_in_one_folder_are_named(monkeypatch, tmp_path):
    pretend_installed(tmp_path, mmcv='2.1.0', mmcv_lite='2.1.0')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match='^mmcv and mmcv-lite.* overwrite each other in mmcv/'):
        require_stack()
