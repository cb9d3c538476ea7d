import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from focal_mm.cli import doctor

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[2]
GOOD = {
    name: dict(name=name)
    for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'focal_mm', 'FocalNet-T', 'mmdet')
}


@pytest.fixture
def call(command):
    """Runs the command; returns its exit status and its text."""
    return lambda *args: command('doctor', *args)[:2]


def states(checks, state):
    return {check.name: check for check in checks if check.state == state}


def test_this_environment_works(call):
    status, text = call('--json')
    checks = {check['name']: check for check in json.loads(text)}
    assert status == 0
    assert checks['torch']['state'] == checks['try mmdet']['state'] == 'ok'
    assert checks['try FocalNet-T']['state'] == checks['try nms and roi_align']['state'] == 'ok'
    assert 'nms' in checks['ops of mmcv']['detail']
    assert all(check['mend'] for check in checks.values() if check['state'] == 'error')


def test_works_without_torch_and_openmmlab(tmp_path):
    # -S leaves site-packages out, where all of them are.
    code = (
        f'import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ["focal-mm", "doctor"]\n'
        'from focal_mm.cli import doctor\n'
        'doctor._probe = lambda: ({}, "")\n'
        'from focal_mm.cli.main import main\n'
        'main()'
    )
    done = subprocess.run(
        [sys.executable, '-S', '-c', code],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONNOUSERSITE='1', PYTHONPATH=''),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1, done.stderr
    assert 'error: torch: not installed' in done.stdout
    assert 'pip install "focal-mm[onedl]"' in done.stdout


@pytest.mark.parametrize(
    'versions, name, words, mend',
    [
        ({}, 'torch', 'not installed', 'pip install'),
        ({'torch': '2.1.0'}, 'torch', '2.5 or later', 'pip install'),
        ({'torch': '2.9', 'mmcv': '2.1.0', 'mmcv-lite': '2.1.0'}, 'mmcv', 'overwrite', 'uninstall'),
        (
            {'torch': '2.9', 'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'},
            'stack',
            'both',
            'pip uninstall -y mmengine onedl-mmcv',
        ),
    ],
)
def test_versions_that_do_not_work(monkeypatch, versions, name, words, mend):
    monkeypatch.setattr(doctor, 'version_of', versions.get)
    check = states(doctor.check_packages({}), 'error')[name]
    assert words in check.detail and mend in check.mend


@pytest.mark.parametrize(
    'name, error, mend',
    [
        ('mmengine', "ModuleNotFoundError: No module named 'pkg_resources'", '"setuptools<82"'),
        ('mmseg', "ModuleNotFoundError: No module named 'ftfy'", 'pip install ftfy'),
        ('mmdet', 'AssertionError: MMCV==2.2.0 is used but incompatible', 'mmcv-lite>=2.1,<2.2'),
        ('mmcv', 'ImportError: libGL.so.1: cannot open shared object', 'opencv-python-headless'),
        ('torch', 'OSError: libtorch_cpu.so: undefined symbol', '--force-reinstall'),
    ],
)
def test_error_of_an_import_has_its_remedy(name, error, mend):
    facts = GOOD | {name: dict(name=name, error=error)}
    (check,) = [c for c in doctor.check_imports(facts, '') if c.state in ('error', 'warning')]
    assert error.partition(': ')[2] in check.detail and mend in check.mend


def test_import_that_ends_the_process_is_named():
    facts = dict(torch=dict(name='torch', begun=True))
    (check,) = doctor.check_imports(facts, 'exit status -11: Segmentation fault')
    assert (check.name, check.state) == ('try torch', 'error') and 'Segmentation' in check.detail


def test_gpu_that_torch_does_not_see(monkeypatch):
    seen = dict(devices=dict(gpus=[['H100', 80 * 2**30, '9.0']], cuda='12.8'))
    assert doctor.check_gpu(seen).detail == 'H100 (80 GiB, 9.0)'
    monkeypatch.setattr(Path, 'exists', lambda path: True)
    blind = doctor.check_gpu(dict(devices=dict(gpus=[], cuda=None)))
    assert blind.state == 'error' and 'built for the CPU' in blind.detail and blind.mend


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('FOCAL_MM_CACHE', str(tmp_path / 'file' / 'cache'))
    check = states(doctor.check_folders(), 'error')['cache']
    assert 'cannot be written' in check.detail and 'FOCAL_MM_CACHE' in check.mend


def test_data_of_a_config(call, write_coco, tmp_path):
    train, folder, _ = write_coco()
    write_coco('val')
    config = tmp_path / 'own.py'
    dataset = f'data_root={str(tmp_path)!r}, data_prefix=dict(img={folder.name!r})'
    config.write_text(
        "_base_ = 'focal_mm::mask_rcnn/focalnet_t_1x.py'\n"
        "metainfo = dict(classes=('dog', 'кот'))\n"
        'head = dict(num_classes=2)\n'
        'model = dict(roi_head=dict(bbox_head=head, mask_head=head))\n'
        f'data = dict({dataset}, metainfo=metainfo)\n'
        "train_dataloader = dict(dataset=dict(data, ann_file='train.json'))\n"
        "val_dataloader = dict(dataset=dict(data, ann_file='val.json'))\n"
        'test_dataloader = val_dataloader\n'
    )
    status, text = call('--data', config, '--thorough')
    assert status == 0 and f'{train}: 4 pictures, 4 annotations' in text
    assert text.endswith('0 errors, 0 warnings\n')
    next(folder.rglob('фото 1.jpg')).write_bytes(b'')
    train.write_text(train.read_text().replace('"category_id": 7', '"category_id": 8'))
    status, text = call('--data', config)
    assert status == 1
    assert 'picture of 0 bytes: ' in text
    assert f'error: {train}: 2 x annotation of an unknown category: id 2 (8), id 4 (8)' in text
    status, text = call('--data', config, '--json')
    assert status == 1 and json.loads(text)['findings'][0]['level'] == 'error'


@pytest.mark.parametrize(
    'name', ['focal_mm::mask_rcnn/focalnet_t_1x.py', 'focal_mm::upernet/focalnet_t.py']
)
def test_data_that_is_not_there(call, name):
    status, text = call('--data', name)
    assert status == 1 and ('does not exist' in text or 'no such folder' in text)
