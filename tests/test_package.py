import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[1]
PATHS = (
    'focal_mm',
    'configs',
    'tools',
    'setup.py',
    'pyproject.toml',
    'model-index.yml',
    'README.md',
    'LICENSE',
    'MANIFEST.in',
)


def python(*code: str, path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """Runs code in a new process that finds focal_mm in ``path``."""
    return subprocess.run(
        [sys.executable, '-c', '\n'.join(code)],
        cwd=cwd,
        text=True,
        capture_output=True,
        env=os.environ | {'PYTHONPATH': str(path)},
    )


def test_import_without_a_stack_says_in_one_line_what_to_install(tmp_path):
    result = python(
        'import sys', 'sys.modules["mmengine"] = None', 'import focal_mm', path=ROOT, cwd=tmp_path
    )
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith('RuntimeError: focal_mm needs mmengine 0.10 or later')
    assert 'pip install "focal-mm[' in message


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
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-index',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            folder,
            source,
        ],
        check=True,
    )
    with zipfile.ZipFile(next(folder.glob('focal_mm-*.whl'))) as wheel:
        wheel.extractall(folder / 'site')
    return folder / 'site'


def files(root: Path) -> set[str]:
    return {
        file.relative_to(root).as_posix()
        for file in root.rglob('*')
        if file.is_file() and '__pycache__' not in file.parts
    }


def test_wheel_holds_the_package_and_what_mim_expects(installed):
    beside = {
        f'.mim/{folder}/{file}' for folder in ('configs', 'tools') for file in files(ROOT / folder)
    }
    assert 'model-index.yml' in files(installed / 'focal_mm' / '.mim')
    assert files(installed / 'focal_mm') == files(ROOT / 'focal_mm') | beside | {
        '.mim/model-index.yml'
    }


def test_wheel_requires_no_openmmlab_package(installed):
    requires = next(iter(metadata.distributions(path=[str(installed)]))).requires
    hard = {line.split('>')[0] for line in requires if 'extra ==' not in line}
    assert hard == {
        'matplotlib',
        'numpy',
        'pillow',
        'pyyaml',
        'rich',
        'safetensors',
        'shtab',
        'torch',
        'torchvision',
    }


@pytest.mark.parametrize('kind', ['source', 'wheel'])
def test_mmengine_reads_our_configs_by_name(request, tmp_path, kind):
    path = ROOT if kind == 'source' else request.getfixturevalue('installed')
    configs = path if kind == 'source' else path / 'focal_mm' / '.mim'
    (tmp_path / 'mine.py').write_text(
        "_base_ = ['focal_mm::mask_rcnn/focalnet_t_1x.py']\n"
        'model = dict(backbone=dict(drop_path_rate=0.4))\n'
    )
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
        'print(ours.filename)',
        path=path,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.split()[-1]) == configs / 'configs/mask_rcnn/focalnet_t_1x.py'
