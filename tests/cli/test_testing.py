import pytest

from focal_mm.cli.runner import load_config
from focal_mm.cli.testing import dump_predictions, use_tta
from focal_mm.config import type_name

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


def test_tta_of_the_config_is_used():
    cfg = load_config(SEGMENTOR)
    own = cfg.tta_pipeline
    use_tta(cfg)
    assert cfg.test_dataloader.dataset.pipeline == own
    assert cfg.model.type.endswith('SegTTAModel') and cfg.model.module.type == 'EncoderDecoder'


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
    assert [*map(type_name, cfg.test_evaluator)] == ['CocoMetric', 'DumpDetResults']
