import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from focal_mm.compat import install

pytestmark = pytest.mark.stock

ONEDL = any(d.name.startswith('onedl') for d in importlib.metadata.distributions())

FALLBACKS = {
    'none': ('from mmcv.ops import batched_nms', 'batched_nms = None'),
    'function': ('from mmcv.ops.roi_align import roi_align', 'def roi_align(): raise RuntimeError'),
    'class': ('from mmcv.ops import CornerPool, nms', 'class CornerPool: pass\n    nms = 1'),
    'other name': ('from mmcv.ops import sigmoid_focal_loss as _loss', 'def _loss(): pass'),
}


@pytest.fixture
def bare(monkeypatch):
    """A process in which mmcv.ops cannot be imported."""
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    for name in ('mmcv.ops', 'mmcv.ops.roi_align'):
        monkeypatch.setitem(sys.modules, name, None)


def fake_mmcv(monkeypatch, folder):
    spec = importlib.util.spec_from_file_location(
        'mmcv', folder / '__init__.py', submodule_search_locations=[str(folder)]
    )
    monkeypatch.setitem(sys.modules, 'mmcv', importlib.util.module_from_spec(spec))


def import_with_fallback(monkeypatch, folder, fallback):
    path = folder / 'mmlate.py'
    path.write_text('try:\n    {}\nexcept ImportError:\n    {}\n'.format(*fallback))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, 'mmlate', raising=False)
    module = importlib.import_module('mmlate')
    monkeypatch.setitem(sys.modules, 'mmlate', module)


def test_mmcv_finds_its_extension():
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils.misc import mmcv_full_available

    assert mmcv_full_available() and check_ops_exist()
    assert sys.modules['mmcv._ext'].__spec__.name == 'mmcv._ext'


def test_installing_again_changes_nothing():
    extension = sys.modules['mmcv._ext']
    assert 'mmcv._ext' in install() and sys.modules['mmcv._ext'] is extension


def test_installing_imports_nothing_else(bare):
    before = set(sys.modules)
    assert 'mmcv._ext' in install() and set(sys.modules) - before == {'mmcv._ext'}


def test_a_compiled_mmcv_is_left_alone(bare, monkeypatch, tmp_path):
    (tmp_path / '_ext.py').write_text('compiled = True')
    fake_mmcv(monkeypatch, tmp_path)
    assert 'mmcv._ext' not in install() and 'mmcv._ext' not in sys.modules


def test_an_mmcv_without_extension_gets_ours(bare, monkeypatch, tmp_path):
    fake_mmcv(monkeypatch, tmp_path)
    assert 'mmcv._ext' in install() and 'focal_mm' in sys.modules['mmcv._ext'].__file__


def test_a_loaded_extension_is_left_alone(bare, monkeypatch):
    extension = ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', extension)
    assert 'mmcv._ext' not in install() and sys.modules['mmcv._ext'] is extension


def test_without_mmcv_nothing_is_installed(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert 'mmcv._ext' not in install() and 'mmcv._ext' not in sys.modules


@pytest.mark.parametrize('name', ['nms_rotated', 'top_pool_forward', 'any_future_op'])
def test_a_missing_op_raises_only_when_called(name):
    op = getattr(sys.modules['mmcv._ext'], name)
    with pytest.raises(NotImplementedError, match=f'^{name} .*MMCV_WITH_OPS=1 pip install [^\n]*$'):
        op(1, threshold=2)


def test_a_missing_op_of_mmcv_names_itself():
    from mmcv.ops import nms_match

    with pytest.raises(NotImplementedError, match='nms_match'):
        nms_match(torch.zeros(1, 5), 0.5)


def test_the_extension_has_no_invented_dunder_names():
    assert not hasattr(sys.modules['mmcv._ext'], '__path__')


def test_the_environment_report_of_mmcv_says_that_nothing_is_compiled():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'focal_mm' in get_compiler_version() and 'focal_mm' in get_compiling_cuda_version()


@pytest.mark.parametrize('fallback', FALLBACKS.values(), ids=FALLBACKS)
def test_a_module_that_gave_up_on_an_op_is_named(bare, monkeypatch, tmp_path, fallback):
    import_with_fallback(monkeypatch, tmp_path, fallback)
    op = re.search(r'import (\w+)', fallback[0])[1]
    with pytest.raises(ImportError, match=f'^mmlate .*{op}: import focal_mm first[^\n]*$'):
        install()
    assert 'mmcv._ext' not in sys.modules


def test_a_module_that_does_without_the_op_is_accepted(bare, monkeypatch, tmp_path):
    import_with_fallback(monkeypatch, tmp_path, ('from mmcv.ops import nms', 'pass'))
    assert 'mmcv._ext' in install()


def run(code):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imports_of_mmdets_train_tool_before_the_config_are_accepted():
    assert 'True' in run(
        'import mmdet.utils, mmdet.registry, mmengine.runner\n'
        'from focal_mm.compat import install\n'
        'print("mmcv._ext" in install())'
    )


@pytest.mark.skipif(not ONEDL, reason='stock mmdet falls back on nothing')
def test_mmdet_of_onedl_imported_first_is_refused():
    assert re.search(
        r'mmdet\.structures\.mask\.structures was imported before focal_mm .*roi_align',
        run(
            'import mmdet.structures.mask\n'
            'try:\n'
            '    from focal_mm.compat import install\n'
            '    install()\n'
            'except ImportError as error:\n'
            '    print(error)'
        ),
    )


@pytest.mark.skipif(ONEDL, reason='the mmdet of OneDL falls back instead of failing')
def test_stock_mmdet_works_after_a_failed_import():
    assert 'recovered' in run(
        'try:\n'
        '    import mmdet.models\n'
        'except ImportError:\n'
        '    from focal_mm.compat import install\n'
        '    install()\n'
        '    from mmdet.models import MaskRCNN\n'
        '    print("recovered")'
    )
