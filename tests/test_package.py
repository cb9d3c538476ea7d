import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import mmengine
import pytest
from mmengine import hub
from mmengine.config import Config

from focal_mm import stack

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[1]
PATHS = ('focal_mm', 'configs', 'tools', 'setup.py', 'pyproject.toml', 'model-index.yml',
         'README.md', 'LICENSE', 'MANIFEST.in')


def python(*code: str, path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """Runs code in a new process that finds focal_mm in ``path``."""
    return subprocess.run([sys.executable, '-c', '\n'.join(code)], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | {'PYTHONPATH': str(path)})


def pretend_installed(folder: Path, **versions: str) -> None:
    """Writes what pip knows of a package; an underscore stands for the hyphen of its name."""
    for name, version in versions.items():
        info = folder / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')


def test_import_without_a_stack_says_in_one_line_what_to_install(tmp_path):
    result = python('import sys', 'sys.modules["mmengine"] = None', 'import focal_mm',
                    path=ROOT, cwd=tmp_path)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith('ImportError: focal_mm needs mmengine 0.10 or later')
    assert 'pip install "focal-mm[' in message


def test_mmengine_alone_is_not_a_stack(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ImportError, match='^focal_mm needs mmcv 2.0 or later, and none is'):
        stack.check()


@pytest.mark.parametrize('version', ['0.9.1', '0.9.0rc4'])
def test_old_mmengine_is_refused(monkeypatch, version):
    monkeypatch.setattr(mmengine, '__version__', version)
    with pytest.raises(ImportError, match=f'mmengine 0.10 or later, and {version} is installed'):
        stack.check()


@pytest.mark.filterwarnings('ignore:.*overwrite each other')
@pytest.mark.parametrize('module, package', [('mmdet', 'mmdet'), ('mmseg', 'mmsegmentation')])
def test_old_downstream_package_is_refused(monkeypatch, tmp_path, module, package):
    pretend_installed(tmp_path, **{package: '0.29.1'})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf'needs {module} \d.0 or later, and 0.29.1 is'):
        stack.check()


@pytest.mark.parametrize('installed, extra', [
    ({}, 'onedl'), ({'onedl_mmengine': '0.10.12'}, 'onedl'), ({'mmengine': '0.9.0'}, 'openmmlab')])
def test_advice_stays_with_the_stack_that_is_there(monkeypatch, tmp_path, installed, extra):
    pretend_installed(tmp_path, **installed)
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ImportError, match=rf'pip install "focal-mm\[{extra}\]"$'):
        stack.check()


def test_two_packages_in_one_folder_are_named(monkeypatch, tmp_path):
    pretend_installed(tmp_path, mmcv='2.1.0', mmcv_lite='2.1.0')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match='^mmcv and mmcv-lite.* overwrite each other in mmcv/'):
        stack.check()


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """A folder with what pip would install of a wheel that was built from the source tree."""
    pytest.importorskip('setuptools', minversion='77')
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in PATHS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-index', '--no-deps',
                    '--no-build-isolation', '-w', folder, source], check=True)
    with zipfile.ZipFile(next(folder.glob('focal_mm-*.whl'))) as wheel:
        wheel.extractall(folder / 'site')
    return folder / 'site'


def files(root: Path) -> set[str]:
    return {file.relative_to(root).as_posix() for file in root.rglob('*')
            if file.is_file() and '__pycache__' not in file.parts}


def test_wheel_holds_the_package_and_what_mim_expects(installed):
    beside = {f'.mim/{folder}/{file}' for folder in ('configs', 'tools')
              for file in files(ROOT / folder)}
    assert 'model-index.yml' in files(installed / 'focal_mm' / '.mim')
    assert files(installed / 'focal_mm') == files(ROOT / 'focal_mm') | beside | {
        '.mim/model-index.yml'}


def test_wheel_requires_no_openmmlab_package(installed):
    requires = next(iter(metadata.distributions(path=[str(installed)]))).requires
    hard = {line.split('>')[0] for line in requires if 'extra ==' not in line}
    assert hard == {'numpy', 'safetensors', 'torch', 'torchvision', 'tqdm'}


@pytest.mark.parametrize('kind', ['source', 'wheel'])
def test_mmengine_reads_our_configs_by_name(request, tmp_path, kind):
    path = ROOT if kind == 'source' else request.getfixturevalue('installed')
    configs = path if kind == 'source' else path / 'focal_mm' / '.mim'
    (tmp_path / 'mine.py').write_text(
        "_base_ = ['focal_mm::mask_rcnn/focalnet_t_1x.py']\n"
        'model = dict(backbone=dict(drop_path_rate=0.4))\n')
    result = python(
        'import sys, focal_mm',
        'heavy = {"mmdet", "mmseg", "mmpretrain", "torchvision", "mmcv.ops"} & set(sys.modules)',
        'assert not heavy, heavy',
        'from mmengine import hub',
        'from mmengine.config import Config',
        'name = "focal_mm::mask_rcnn/focalnet_t_1x.py"',
        'ours = Config.fromfile(name)',
        'assert ours.model.backbone.type == "FocalNet"',
        'assert hub.get_config(name).model == ours.model',
        'mine = Config.fromfile("mine.py")',
        'assert mine.model.backbone.drop_path_rate == 0.4',
        'assert mine.model.neck == ours.model.neck',
        'print(ours.filename)', path=path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.split()[-1]) == configs / 'configs/mask_rcnn/focalnet_t_1x.py'


def test_dicts_inherited_from_us_get_no_scope_of_their_own(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text("_base_ = 'focal_mm::mask_rcnn/focalnet_t_1x.py'\n"
                    'mine = _base_.optim_wrapper\n')
    assert '_scope_' not in Config.fromfile(file).mine


def test_unknown_config_names_the_near_ones():
    with pytest.raises(FileNotFoundError, match='near it: mask_rcnn/focalnet_t_1x.py'):
        Config.fromfile('focal_mm::mask_rcnn/focalnet_t1x.py')


def test_no_trained_model_is_promised():
    with pytest.raises(ValueError, match='publishes no trained models'):
        hub.get_config('focal_mm::mask_rcnn/focalnet_t_1x.py', pretrained=True)


@pytest.mark.parametrize('name', ['mmdet::_base_/models/mask-rcnn_r50_fpn.py',
                                  'mmseg::_base_/models/upernet_swin.py'])
def test_names_of_other_packages_are_read_too(name):
    assert Config.fromfile(name).model.type in ('MaskRCNN', 'EncoderDecoder')
