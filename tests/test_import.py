"""What ``import focal_mm`` changes in a process: nothing but what its docstring lists."""

import json
import logging
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import mmcv.cnn  # noqa: F401
import mmengine.hub
import mmengine.registry
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import CheckpointLoader

ROOT = Path(__file__).parents[1]
PROJECT = Path(__file__).parent / 'data' / 'project'

pytestmark = pytest.mark.stock


def run(*args: str | Path, **environ: str) -> subprocess.CompletedProcess:
    """Runs Python in a new process that finds focal_mm."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **environ),
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done


# What an import may load beside focal_mm: what it needs itself.
LOADED = sys.stdlib_module_names | {'focal_mm', 'mmengine', 'numpy', 'safetensors', 'torch'}


def attributes(module: ModuleType) -> dict[str, int]:
    """The identity of each attribute of a module, its classes and its tables."""
    found = {}
    for name, value in list(vars(module).items()):
        found[name] = id(value)
        if isinstance(value, type) and value.__module__ == module.__name__:
            found |= {f'{name}.{key}': id(held) for key, held in list(vars(value).items())}
        if isinstance(value, dict) and not name.startswith('__'):
            found |= {f'{name}[{key!r}]': id(held) for key, held in list(value.items())}
    return {f'{module.__name__}.{name}': held for name, held in found.items()}


def _finders() -> list:
    """Finders of modules, but for the one that makes additions."""
    return [finder for finder in sys.meta_path if 'focal_mm.additions' not in repr(finder)]


def state_of_process() -> dict[str, dict]:
    """What an import could change."""
    modules = {
        name: module for name, module in sys.modules.items() if isinstance(module, ModuleType)
    }
    registries = [
        value for value in vars(mmengine.registry).values() if isinstance(value, Registry)
    ]
    watched = (
        r'(mmengine|mmcv\.[a-z]|warnings$|logging$|random$|torch\.(serialization|hub)$|importlib)'
    )
    return dict(
        modules=dict.fromkeys(modules),
        names={
            f'{scope}.{name}': repr(cls)
            for registry in registries
            for scope, child in [('root', registry), *registry.children.items()]
            for name, cls in child.module_dict.items()
        },
        schemes={name: repr(loader) for name, loader in CheckpointLoader._schemes.items()},
        attributes={
            name: held
            for module in modules.values()
            if re.match(watched, module.__name__)
            for name, held in attributes(module).items()
        },
        operators=dict.fromkeys(torch._C._dispatch_get_all_op_names()),
        settings=dict(
            numpy=repr(np.random.get_state()),
            random=random.getstate(),
            torch=torch.get_rng_state().tolist(),
            threads=(torch.get_num_threads(), torch.get_num_interop_threads()),
            dtype=torch.get_default_dtype(),
            grad=torch.is_grad_enabled(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            precision=torch.get_float32_matmul_precision(),
            cudnn=(torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            trusted=torch.serialization.get_safe_globals(),
            filters=warnings.filters[:],
            handlers=(logging.root.handlers[:], logging.root.level),
            scope=DefaultScope.get_current_instance(),
            path=sys.path[:],
            hooks=(_finders(), sys.path_hooks[:], sys.excepthook),
            environ=dict(os.environ),
            folder=os.getcwd(),
            start=multiprocessing.get_start_method(allow_none=True),
            threads_running=threading.enumerate(),
        ),
    )


def write_changes(folder: Path) -> None:
    """Write which things the import changes; in a process of its own."""
    state_of_process()  # imports numpy.random
    before = state_of_process()
    import focal_mm

    after = state_of_process()
    changed = {
        kind: sorted(
            name
            for name in before[kind].keys() | after[kind].keys()
            if before[kind].get(name, before) != after[kind].get(name, before)
        )
        for kind in before
    }
    (folder / 'changes.json').write_text(json.dumps(dict(changed, docstring=focal_mm.__doc__)))


@pytest.fixture(scope='module')
def changed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('changes')
    run(__file__, folder)
    return json.loads((folder / 'changes.json').read_text())


def test_import_changes_no_setting_of_the_process(changed):
    assert changed['settings'] == []


def test_import_loads_what_it_needs_and_stand_ins(changed):
    others = {name for name in changed['modules'] if name.partition('.')[0] not in LOADED}
    named = {name for name in others if f'``{name.partition(".")[0]}' in changed['docstring']}
    assert others == named and 'mmcv.ops' not in others


PREFIX = r'(\S+\:)?'  # of mmengine's schemes, which are patterns


def test_docstring_names_all_that_the_import_registers(changed):
    for name in changed['names']:
        scope, _, name = name.partition('.')
        assert scope in ('root', 'focal_mm') and f'{name}``' in changed['docstring']
    for scheme in filter(None, changed['schemes']):
        assert f'``{scheme.removeprefix(PREFIX)}``' in changed['docstring']
    for operator in changed['operators']:
        assert f'ops.{operator.replace("::", ".")}``' in changed['docstring']


def test_docstring_names_all_that_the_import_replaces(changed):
    tails = {
        '.'.join(name.split('[')[0].split('.')[-2 if '[' not in name else -1 :])
        for name in changed['attributes']
        if not name.startswith('mmcv._ext.')
    }
    # mmengine exports these two from several modules.
    tails = {re.sub(r'^.*\.(?=turn_on_)', '', tail) for tail in tails}
    assert tails - {'CheckpointLoader._schemes'} == {
        name
        for name in re.findall(r'``([\w.]+)``', changed['docstring'])
        if re.match(r'(Config|hub|Registry|CheckpointLoader|checkpoint)\.|MODULE2|PKG2', name)
        or re.match(r'turn_on_|(prefix_to_)?backends', name)
    }


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> Path:
    """Runs of a project, of two epochs and resumed, without focal_mm and with it."""
    folder = tmp_path_factory.mktemp('runs')
    # Plain mmengine 0.10.7 needs the variable to resume with torch 2.6 and later.
    plain = dict(TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
    run(PROJECT / 'train.py', folder, 'none', **plain)
    run(PROJECT / 'train.py', folder, 'first', 'last')
    return folder


WITH = pytest.mark.parametrize('place', ['first', 'last'])
STAMP = re.compile(r'\d{8}_\d{6}')


@WITH
def test_project_writes_the_same_files(runs, place):
    def files(folder: Path) -> list[str]:
        return sorted(
            STAMP.sub('TIME', str(file.relative_to(folder)))
            for file in folder.rglob('*')
            if file.is_file()
        )

    assert files(runs / place) == files(runs / 'none')
    assert 'resume/TIME/vis_data/scalars.json' in files(runs / place)


@WITH
@pytest.mark.parametrize('task', ['train', 'resume'])
def test_project_has_the_same_losses(runs, place, task):
    def losses(folder: Path) -> list[dict]:
        lines = next((folder / task).glob('*/vis_data/scalars.json')).read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if 'time' not in key}
            for line in lines
        ]

    assert losses(runs / place) == losses(runs / 'none')
    assert losses(runs / place)[-1]['error'] > 0


@WITH
@pytest.mark.parametrize('file', ['train/epoch_1.pth', 'train/epoch_2.pth', 'resume/epoch_2.pth'])
def test_project_has_the_same_checkpoints(runs, place, file):
    def content(folder: Path) -> tuple[dict, dict]:
        checkpoint = torch.load(folder / file, weights_only=False)
        meta, hub = checkpoint.pop('meta'), checkpoint.pop('message_hub')
        schedulers = checkpoint.pop('param_schedulers')
        names = dict(meta=set(meta), hub={key: set(part) for key, part in hub.items()})
        return checkpoint, dict(names, schedulers=schedulers)

    (ours, our_rest), (theirs, their_rest) = content(runs / place), content(runs / 'none')
    assert ours.keys() == theirs.keys() >= {'state_dict', 'ema_state_dict', 'optimizer', 'count'}
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert our_rest == their_rest


DETECTOR = """
custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        _delete_=True, type='FocalNet', arch=dict(embed_dims=8, depths=(1, 1, 1, 1)), init_cfg=None
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
)
"""


def test_detector_is_imported_before_the_config_that_names_us(tmp_path):
    """OneDL's mmdet goes on without its ops; stock mmdet fails, and can be imported afterwards."""
    (tmp_path / 'detector.py').write_text(DETECTOR)
    (tmp_path / 'late.py').write_text(
        'import sys\n'
        'try:\n'
        '    from mmdet.apis import DetInferencer\n'
        'except ModuleNotFoundError as error:\n'
        '    assert error.name == "mmcv._ext", error\n'
        '    import focal_mm\n'
        '    from mmdet.apis import DetInferencer\n'
        'else:\n'
        '    assert "focal_mm" not in sys.modules\n'
        'import numpy as np\n'
        'inferencer = DetInferencer(sys.argv[1], device="cpu")\n'
        'assert inferencer(np.zeros((48, 64, 3), np.uint8))["predictions"]\n'
        'import mmcv.ops, mmdet.apis.det_inferencer, mmdet.evaluation, mmdet.structures.mask\n'
        'assert mmdet.structures.mask.structures.roi_align is mmcv.ops.roi_align\n'
        'assert mmdet.apis.det_inferencer.VOID == 0\n'
        'assert mmdet.evaluation.metrics.coco_panoptic_metric.PQStat is not None\n'
    )
    run(tmp_path / 'late.py', tmp_path / 'detector.py')


def test_import_leaves_out_what_takes_long():
    slow = ('mmcv', 'mmengine.hub', 'mmengine.model', 'mmengine.optim', 'mmengine.runner')
    code = f'import sys, focal_mm; print(sys.modules.keys() & set({slow}))'
    assert run('-c', code).stdout == 'set()\n'


def test_failure_within_custom_imports_is_ours_and_may_be_mended(tmp_path):
    """mmengine turns an ImportError into one that speaks of PYTHONPATH alone."""
    (tmp_path / 'mine.py').write_text("custom_imports = dict(imports=['focal_mm'])\n")
    (tmp_path / 'try.py').write_text(
        'import sys\n'
        'from mmengine.config import Config\n'
        'from mmengine.registry import MODELS\n'
        'sys.modules["mmcv"] = None\n'
        'try:\n'
        '    Config.fromfile(sys.argv[1])\n'
        'except RuntimeError as error:\n'
        '    print(error)\n'
        'del sys.modules["mmcv"]\n'
        'print(MODELS.get("focal_mm.FocalNet"), MODELS.get("MixFormer"))\n'  # the scope imports us
    )
    lines = run(tmp_path / 'try.py', tmp_path / 'mine.py').stdout.splitlines()
    assert lines[-2].startswith('focal_mm needs mmcv 2.0 or later, and none is')
    assert lines[-1].count('focal_mm.backbones') == 2


if __name__ == '__main__':
    write_changes(Path(sys.argv[1]))
