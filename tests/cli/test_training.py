import pytest

from focal_mm.cli.runner import load_config
from focal_mm.cli.training import scale_lr

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


def test_learning_rate_scales_only_from_a_known_batch():
    cfg = load_config(CONFIG)
    scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(ValueError, match='base_batch_size'):
        scale_lr(load_config(SEGMENTOR))
