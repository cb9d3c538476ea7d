from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from focal_mm.cli.runner import _WithoutSyncBatchNorm, load_config, require_files, run
from focal_mm.config import type_name

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'


def test_data_root_in_the_options_moves_the_data():
    cfg = load_config(CONFIG, options=dict(data_root='/photos/coco/'))
    assert 'data/coco' not in cfg.pretty_text
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root == '/photos/coco/'


def test_options_come_after_mini():
    cfg = load_config(CONFIG, mini=True, options={'train_cfg.max_epochs': 1})
    assert cfg.train_cfg.max_epochs == 1


def test_backbone_comes_before_the_options_and_dump_after_them(tmp_path):
    cfg = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        options={'model.backbone.drop_path_rate': 0.4},
        backbone='focalnet_tiny_lrf_in1k',
        dump=f'{tmp_path}/mine.py',
    )
    dumped = Config.fromfile(tmp_path / 'mine.py')
    assert dumped.model == cfg.model and dumped.model.backbone.type == 'FocalNet'
    assert dumped.model.backbone.drop_path_rate == 0.4
    assert dumped.custom_imports.imports == ['focal_mm']


@pytest.mark.parametrize('file', ['mine.txt', 'missing/mine.py'])
def test_file_that_a_config_cannot_be_written_to_is_an_error(tmp_path, file):
    with pytest.raises((ValueError, FileNotFoundError), match='--dump'):
        load_config(CONFIG, dump=f'{tmp_path}/{file}')


def test_work_folder_is_called_after_the_config_and_its_folder(tmp_path, monkeypatch):
    assert load_config(CONFIG).work_dir == 'work_dirs/mask_rcnn/focalnet_t_1x'
    path = Path(__file__).parents[2] / 'configs' / 'mask_rcnn' / 'focalnet_t_1x.py'
    assert load_config(str(path)).work_dir == 'work_dirs/mask_rcnn/focalnet_t_1x'
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text(f'_base_ = {CONFIG!r}')
    assert load_config('mine.py').work_dir == 'work_dirs/mine'
    assert load_config(CONFIG, 'elsewhere').work_dir == 'elsewhere'


@pytest.mark.parametrize('amp', [False, True])
def test_mixed_precision_is_off_without_a_gpu(amp, monkeypatch):
    monkeypatch.setattr('focal_mm.cli.runner.get_device', lambda: 'cpu')
    wrapper = load_config(CONFIG, amp=amp).optim_wrapper
    assert wrapper.type == 'OptimWrapper' and 'loss_scale' not in wrapper


def test_mixed_precision_is_on_with_a_gpu(monkeypatch):
    monkeypatch.setattr('focal_mm.cli.runner.get_device', lambda: 'cuda')
    mmdet = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    assert load_config(mmdet).optim_wrapper.type == 'OptimWrapper'
    assert load_config(mmdet, amp=True).optim_wrapper.type == 'AmpOptimWrapper'


def test_files_that_are_there_pass(tmp_path):
    require_files(load_config(CONFIG, mini=True), 'train_dataloader', 'val_dataloader')


def test_first_missing_file_is_named(tmp_path):
    (tmp_path / 'annotations').mkdir()
    cfg = load_config(CONFIG, options=dict(data_root=str(tmp_path)))
    with pytest.raises(
        FileNotFoundError,
        match='annotations/instances_train2017.json, which train_dataloader reads',
    ):
        require_files(cfg, 'train_dataloader')
    with pytest.raises(FileNotFoundError, match='val2017.*test_dataloader'):
        require_files(cfg, 'test_dataloader')


def test_data_on_other_file_systems_is_not_looked_for():
    cfg = load_config(CONFIG, options=dict(data_root='s3://bucket/coco'))
    assert cfg.test_evaluator.ann_file.startswith('s3://bucket/coco/annotations/')
    require_files(cfg, 'train_dataloader', 'val_dataloader')


# ---- paths -------------------------------------------------------------------------------------


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text(f'_base_ = {CONFIG!r}\nload_from = "~/x.pth"')
    options = {
        'data_root': '~/coco',
        'work_dir': '~/runs',
        'model.backbone.init_cfg.checkpoint': '~/y.pth',
        'train_dataloader.dataset.names': ['~/a', '~/b'],
    }
    cfg = load_config('~/mine.py', options=options)
    home = str(tmp_path)
    assert (cfg.load_from, cfg.work_dir) == (f'{home}/x.pth', f'{home}/runs')
    assert cfg.model.backbone.init_cfg.checkpoint == f'{home}/y.pth'
    assert cfg.train_dataloader.dataset.names == [f'{home}/a', f'{home}/b']
    assert cfg.val_evaluator.ann_file.startswith(f'{home}/coco/annotations')
    with pytest.raises(FileNotFoundError, match=f'{home}/x.pth: no such checkpoint'):
        require_files(cfg)
    (tmp_path / 'x.pth').touch()
    require_files(cfg)


def test_paths_of_pathlib_are_names(tmp_path):
    (tmp_path / 'mine.py').write_text(
        f'_base_ = {CONFIG!r}\nPath = __import__("pathlib").Path\n'
        f'data_root = Path({str(tmp_path)!r})\n'
        'train_dataloader = dict(dataset=dict(data_root=data_root))\nload_from = Path("x.pth")'
    )
    cfg = load_config(str(tmp_path / 'mine.py'))
    assert (cfg.data_root, cfg.load_from) == (str(tmp_path), 'x.pth')
    with pytest.raises(FileNotFoundError, match='annotations/instances_train2017'):
        require_files(cfg, 'train_dataloader')


@pytest.mark.parametrize('address', ['s3://a/b.pth', 'file:///b.pth', 'focal://b', 'https://a/b'])
def test_addresses_are_left_to_their_loaders(address):
    require_files(load_config(CONFIG, options=dict(load_from=address)))


def test_folder_is_no_checkpoint(tmp_path):
    cfg = load_config(CONFIG, options=dict(load_from=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match='is a folder; give the checkpoint file'):
        require_files(cfg)


@pytest.mark.parametrize(
    'fields',
    [dict(ann_file='s3://bucket/train.json'), dict(backend_args=dict(backend='petrel'))],
    ids=['address below a folder', 'backend'],
)
def test_data_that_another_backend_reads_is_not_looked_for(tmp_path, fields):
    (tmp_path / 'train2017').mkdir()
    cfg = load_config(CONFIG, options=dict(data_root=str(tmp_path)))
    cfg.train_dataloader.dataset.update(fields)
    require_files(cfg, 'train_dataloader')


# ---- data loaders -------------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['train_dataloader', 'val_dataloader', 'test_dataloader'])
def test_loader_without_workers_has_none_of_their_options(key):
    given = dict(num_workers=0, persistent_workers=True, prefetch_factor=4, timeout=9)
    given.update(multiprocessing_context='fork', pin_memory=True)
    loader = load_config(CONFIG, options={f'{key}.{k}': v for k, v in given.items()})[key]
    left = {name: loader.get(name) for name in given if name in loader}
    assert left == dict(num_workers=0, pin_memory=True)
    DataLoader([1], **left)


def test_loader_with_workers_keeps_their_options():
    loader = load_config(CONFIG, options={'train_dataloader.prefetch_factor': 4}).train_dataloader
    assert loader.persistent_workers and loader.prefetch_factor == 4


# ---- processes without a GPU --------------------------------------------------------------------


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr('focal_mm.cli.runner.get_device', lambda: 'cpu')


@pytest.mark.parametrize(
    'options, expected',
    [
        ({}, dict(find_unused_parameters=False, broadcast_buffers=False)),
        (
            dict(find_unused_parameters=True),
            dict(find_unused_parameters=True, broadcast_buffers=False),
        ),
        (
            dict(model_wrapper_cfg=dict(detect_anomalous_params=True)),
            dict(detect_anomalous_params=True),
        ),
    ],
)
def test_settings_of_distributed_training_are_kept(without_gpu, options, expected):
    cfg = load_config(CONFIG, launcher='pytorch', options=options)
    assert cfg.model_wrapper_cfg == dict(expected, device_ids=None)


def test_models_that_synchronize_batch_norm_train_without_a_gpu(without_gpu, monkeypatch):
    wrapped, lines = [], []
    monkeypatch.setattr('focal_mm.cli.runner.print_log', lambda line, **_: lines.append(line))
    monkeypatch.setattr(Runner, 'wrap_model', lambda self, cfg, model: wrapped.append(model))
    runner = object.__new__(_WithoutSyncBatchNorm)
    runner.wrap_model({}, nn.Sequential(nn.SyncBatchNorm(2), nn.ReLU()))
    assert isinstance(wrapped[0][0], _BatchNorm)
    assert not isinstance(wrapped[0][0], nn.SyncBatchNorm)
    assert lines == ['no GPU: BatchNorm instead of SyncBatchNorm']
    assert load_config(CONFIG, launcher='mpi', options=dict(sync_bn='torch')).sync_bn is None


@pytest.mark.parametrize(
    'rank, restarts, shared, warns',
    [
        ('0', '3', 'True', True),
        ('1', '3', 'True', False),
        ('0', '0', 'True', False),
        ('0', '3', 'False', False),
    ],
)
def test_restarts_that_fail_are_warned_of(monkeypatch, capsys, rank, restarts, shared, warns):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', restarts)
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', shared)
    monkeypatch.setattr('focal_mm.cli.runner.build_runner', lambda cfg: SimpleNamespace(train=int))
    run(Config(dict(check_data=False)), 'train')
    assert ('TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1' in capsys.readouterr().out) == warns


# ---- classes for types --------------------------------------------------------------------------


@pytest.mark.parametrize('amp', ['AmpOptimWrapper', 'mmengine.optim.AmpOptimWrapper', 'class'])
def test_mixed_precision_is_known_in_every_spelling(tmp_path, without_gpu, amp):
    name = 'AmpOptimWrapper' if amp == 'class' else repr(amp)
    (tmp_path / 'mine.py').write_text(
        'from torch.optim import SGD\nfrom mmengine.optim import AmpOptimWrapper\n'
        f'optim_wrapper = dict(type={name}, dtype="float16", loss_scale="dynamic",\n'
        '    optimizer=dict(type=SGD, lr=0.1))\n'
    )
    cfg = load_config(str(tmp_path / 'mine.py'))
    assert type_name(cfg.optim_wrapper) == 'OptimWrapper'
    assert not {'dtype', 'loss_scale'} & cfg.optim_wrapper.keys()
    assert type_name(cfg.optim_wrapper.optimizer) == 'SGD'
    assert 'SGD' in cfg.pretty_text
