from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from focal_mm.engine import (check_files, dump_predictions, load_config, one_line_errors,
                             scale_lr, use_tta)

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


def test_data_root_moves_every_dataset_and_annotation():
    cfg = load_config(CONFIG, options=dict(data_root='/photos/coco/'))
    assert 'data/coco' not in cfg.pretty_text
    assert cfg.train_dataloader.dataset.data_root == '/photos/coco/'
    assert cfg.test_evaluator.ann_file == '/photos/coco/annotations/instances_val2017.json'


def test_data_root_leaves_folders_alone_whose_names_only_begin_alike(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("data_root = 'data/coco'\nmaps = 'data/coco_stuff'\nphotos = 'data/coco/x'")
    cfg = load_config(str(config), options=dict(data_root='/photos'))
    assert (cfg.maps, cfg.photos) == ('data/coco_stuff', '/photos/x')


def test_options_come_after_mini():
    cfg = load_config(CONFIG, mini=True, options={'train_cfg.max_epochs': 1})
    assert cfg.train_cfg.max_epochs == 1


def test_work_folder_is_called_after_the_config_and_its_folder(tmp_path, monkeypatch):
    assert load_config(CONFIG).work_dir == 'work_dirs/mask_rcnn/focalnet_t_1x'
    path = Path(__file__).parents[1] / 'configs' / 'mask_rcnn' / 'focalnet_t_1x.py'
    assert load_config(str(path)).work_dir == 'work_dirs/mask_rcnn/focalnet_t_1x'
    monkeypatch.chdir(tmp_path)
    Path('mine.py').write_text(f'_base_ = {CONFIG!r}')
    assert load_config('mine.py').work_dir == 'work_dirs/mine'
    assert load_config(CONFIG, 'elsewhere').work_dir == 'elsewhere'


@pytest.mark.parametrize('amp', [False, True])
def test_mixed_precision_is_off_without_a_gpu(amp, monkeypatch):
    monkeypatch.setattr('focal_mm.engine.get_device', lambda: 'cpu')
    wrapper = load_config(CONFIG, amp=amp).optim_wrapper
    assert wrapper.type == 'OptimWrapper' and 'loss_scale' not in wrapper


def test_mixed_precision_is_on_with_a_gpu(monkeypatch):
    monkeypatch.setattr('focal_mm.engine.get_device', lambda: 'cuda')
    mmdet = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    assert load_config(mmdet).optim_wrapper.type == 'OptimWrapper'
    assert load_config(mmdet, amp=True).optim_wrapper.type == 'AmpOptimWrapper'


def test_files_that_are_there_pass(tmp_path):
    check_files(load_config(CONFIG, mini=True), 'train_dataloader', 'val_dataloader')


def test_first_missing_file_is_named(tmp_path):
    (tmp_path / 'annotations').mkdir()
    cfg = load_config(CONFIG, options=dict(data_root=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match='annotations/instances_train2017.json, which '
                                                'train_dataloader reads'):
        check_files(cfg, 'train_dataloader')
    with pytest.raises(FileNotFoundError, match='val2017.*test_dataloader'):
        check_files(cfg, 'test_dataloader')


def test_data_on_other_file_systems_is_not_looked_for():
    cfg = load_config(CONFIG, options=dict(data_root='s3://bucket/coco'))
    assert cfg.test_evaluator.ann_file.startswith('s3://bucket/coco/annotations/')
    check_files(cfg, 'train_dataloader', 'val_dataloader')


def test_learning_rate_scales_only_from_a_known_batch():
    cfg = load_config(CONFIG)
    scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(ValueError, match='base_batch_size'):
        scale_lr(load_config(SEGMENTOR))


def test_tta_of_the_config_is_used():
    cfg = load_config(SEGMENTOR)
    own = cfg.tta_pipeline
    use_tta(cfg)
    assert cfg.test_dataloader.dataset.pipeline == own
    assert cfg.model.type == 'SegTTAModel' and cfg.model.module.type == 'EncoderDecoder'


def test_tta_flips_by_default():
    cfg = load_config(CONFIG, mini=True)
    use_tta(cfg)
    augmentation = cfg.test_dataloader.dataset.pipeline[-1]
    assert augmentation.type == 'TestTimeAug'
    assert [flip.prob for flip in augmentation.transforms[0]] == [0, 1]
    assert cfg.model.module.roi_head.mask_head is None
    assert cfg.test_evaluator.metric == ['bbox']


def test_tta_of_masks_without_a_mask_head_is_an_error():
    cfg = load_config('mmdet::solo/solo_r50_fpn_1x_coco.py')
    with pytest.raises(ValueError, match='--tta.*SOLO'):
        use_tta(cfg)


def test_predictions_of_a_segmentor_go_into_a_folder():
    cfg = load_config(SEGMENTOR)
    dump_predictions(cfg, 'labels')
    assert cfg.test_evaluator.output_dir == 'labels' and cfg.test_evaluator.keep_results


def test_predictions_are_kept_beside_the_metrics():
    cfg = load_config(CONFIG)
    dump_predictions(cfg, 'found.pkl')
    assert [metric.type for metric in cfg.test_evaluator] == ['CocoMetric', 'DumpDetResults']


def test_own_errors_end_in_one_line_even_wrapped_by_a_registry(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors():
        MODELS.build(dict(type='FocalNet', arch='tiny_lfr'))
    assert stop.value.code == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'tiny_lfr' in line and 'class `' not in line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        1 / 0
