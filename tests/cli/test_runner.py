from pathlib import Path

import pytest
from mmengine.config import Config

from focal_mm.cli.runner import load_config, require_files

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
