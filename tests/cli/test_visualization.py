import numpy as np
import pytest
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from focal_mm.cli.runner import load_config
from focal_mm.cli.visualization import draw_detections, draw_losses

pytestmark = pytest.mark.stock


def picture(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(float)


def test_loss_curves_fall_where_losses_fall(tmp_path):
    falling = np.linspace(4, 1, 40)
    draw_losses({'loss': falling}, tmp_path / 'falling.png')
    draw_losses({'loss': falling[::-1]}, tmp_path / 'rising.png')
    assert np.abs(picture(tmp_path / 'falling.png') - picture(tmp_path / 'rising.png')).max() > 99


def test_short_runs_have_a_curve_too(tmp_path):
    draw_losses({'loss': [2.0, 1.0], 'loss_mask': [1.0, 0.5]}, tmp_path / 'short.png')
    assert picture(tmp_path / 'short.png').std() > 1


@pytest.fixture(scope='module')
def detector():
    cfg = load_config(
        'focal_mm::mask_rcnn/focalnet_t_1x.py',
        mini=True,
        options={
            'model.backbone.embed_dims': 8,
            'model.backbone.depths': [1, 1, 1, 1],
            'model.neck.in_channels': [8, 16, 32, 64],
        },
    )
    init_default_scope('mmdet')
    return MODELS.build(cfg.model), DATASETS.build(cfg.val_dataloader.dataset)


def test_contact_sheet_shows_ground_truth_and_predictions(detector, tmp_path):
    draw_detections(*detector, [0, 1, 2], tmp_path / 'none.png', score_thr=1)
    draw_detections(*detector, [0, 1, 2], tmp_path / 'all.png', score_thr=0)
    none, everything = picture(tmp_path / 'none.png'), picture(tmp_path / 'all.png')
    assert none.shape == everything.shape
    assert np.abs(none - everything).mean() > 1


def test_contact_sheet_takes_an_image_without_objects(detector, tmp_path):
    draw_detections(*detector, [15], tmp_path / 'empty.png')
    assert picture(tmp_path / 'empty.png').std() > 1
