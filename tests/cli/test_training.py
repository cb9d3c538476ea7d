import pytest

from focal_mm.cli.runner import load_config
from focal_mm.cli.training import scale_lr, skip_corrupt

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


def test_learning_rate_scales_only_from_a_known_batch():
    cfg = load_config(CONFIG)
    scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(ValueError, match='base_batch_size'):
        scale_lr(load_config(SEGMENTOR))


def test_every_transform_that_loads_may_skip():
    cfg = load_config(SEGMENTOR)
    skip_corrupt(cfg, 3)
    steps = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in steps[:2]] == ['focal_mm.SkipCorrupt'] * 2
    assert [step.transform.type for step in steps[:2]] == ['LoadImageFromFile', 'LoadAnnotations']
    assert steps[0].limit == 3 and steps[2].type != 'focal_mm.SkipCorrupt'
    with pytest.raises(ValueError, match='--skip-corrupt -1'):
        skip_corrupt(cfg, -1)
