import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.registry import MODELS

from focal_mm.compat import install, mmcv_ops

pytestmark = pytest.mark.stock


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
    from mmcv.ops import nms_rotated

    with pytest.raises(NotImplementedError, match='nms_rotated'):
        nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def used_of_mmcv() -> Iterator[object]:
    """What mmdet, mmseg, mmpretrain and mmpose import from mmcv.ops, or name in their configs."""
    ops = importlib.import_module('mmcv.ops')
    for package in ('mmdet', 'mmseg', 'mmpretrain', 'mmpose'):
        spec = importlib.util.find_spec(package)
        for path in Path(spec.origin).parent.rglob('*.py') if spec else ():
            source = path.read_text(encoding='utf-8')
            for node in ast.walk(ast.parse(source)) if 'mmcv.ops' in source else ():
                if isinstance(node, ast.ImportFrom) and (node.module or '')[:8] == 'mmcv.ops':
                    module = importlib.import_module(node.module)
                    yield from (getattr(module, alias.name) for alias in node.names)
            if '.mim' in path.parts:
                for name in re.findall(r"roi_layer=dict\([^)]*type='(\w+)'", source):
                    yield getattr(ops, name)
                for name in {'DCN', 'DCNv2', 'SAC', 'MMSyncBN', 'carafe'} & set(
                    re.findall(r"type='(\w+)'", source)
                ):
                    yield MODELS.get(name)


def test_what_the_packages_use_is_there():
    """So that the True of mmcv's check_ops_exist is the truth for each of their configs."""
    missing = set()
    # Some are the `apply` of a class.
    for module in {getattr(used, '__self__', used).__module__ for used in used_of_mmcv()}:
        source = inspect.getsource(sys.modules[module])
        for ops in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", source, re.DOTALL):
            missing |= set(re.findall(r"'(\w+)'", ops)) - set(mmcv_ops.__all__)
    # Of modules of which other functions are used.
    assert missing <= {
        'nms_rotated',
        'nms_quadri',
        'softmax_focal_loss_forward',
        'softmax_focal_loss_backward',
    }


def test_the_extension_has_no_invented_dunder_names():
    assert not hasattr(sys.modules['mmcv._ext'], '__path__')


def test_the_environment_report_of_mmcv_says_that_nothing_is_compiled():
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'focal_mm' in get_compiler_version() and 'focal_mm' in get_compiling_cuda_version()
