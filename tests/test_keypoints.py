import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from focal_mm.datasets import mini_coco, use_mini
from focal_mm.datasets.shapes import draw_scene

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
CONFIG = 'focal_mm::keypoint/mixformer_b4_256x192.py'


def test_keypoints_of_the_mini_dataset_are_the_ends_of_the_shapes():
    content = json.loads((mini_coco() / 'annotations/person_keypoints_val2017.json').read_text())
    masks = draw_scene(0, 'val', 0).masks
    annotations = [a for a in content['annotations'] if a['image_id'] == 1]
    for annotation, mask in zip(annotations, masks, strict=True):
        points = np.reshape(annotation['keypoints'], (4, 3))[:, :2]
        assert all(mask[y, x] for x, y in points)
        x, y, width, height = annotation['bbox']
        (_, top), (right, _), (_, bottom), (left, _) = points
        assert (left, top, right + 1, bottom + 1) == (x, y, x + width, y + height)


def test_keypoints_are_evaluated_with_the_deviations_given():
    from focal_mm.keypoints import COCO, COCOeval
    truth = COCO(mini_coco() / 'annotations/person_keypoints_val2017.json')
    found = [dict(image_id=a['image_id'], category_id=1, score=1.,
                  keypoints=[value + (i % 3 == 0) * 2 for i, value in enumerate(a['keypoints'])])
             for a in truth.anns.values()]
    figures = []
    for sigma in (0.5, 0.02):
        evaluation = COCOeval(truth, truth.loadRes(found), 'keypoints', np.full(4, sigma))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures.append(evaluation.stats[0])
    assert figures[0] > 0.99 and figures[1] < 0.9


def test_what_only_xtcocotools_can_do_says_so():
    from focal_mm.keypoints import COCOeval
    with pytest.raises(NotImplementedError, match='keypoints_crowd.*needs xtcocotools'):
        COCOeval(iou_type='keypoints_crowd')


def test_index_gives_the_papers_figures():
    index = yaml.safe_load((ROOT / 'configs' / 'keypoint' / 'metafile.yml').read_text())
    rows = json.loads((ROOT / 'tests' / 'data' / 'tables.json').read_text())['detection']
    row, = (row for row in rows if row['method'] == 'keypoint')
    assert index['Models'][0]['Results'][0]['Metrics'] == row['schedules']['']


def test_config_takes_a_step_of_training_and_testing():
    pytest.importorskip('mmpose', reason='mmpose is not installed (README)')
    cfg = use_mini(Config.fromfile(CONFIG))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    train, val = (DATASETS.build(loader.dataset)
                  for loader in (cfg.train_dataloader, cfg.val_dataloader))
    losses = model.train_step(pseudo_collate([train[0], train[1]]), wrapper)
    assert losses['loss'].isfinite()
    with torch.no_grad():
        predicted, = model.eval().test_step(pseudo_collate([val[0]]))
    assert predicted.pred_instances.keypoints.shape == (1, 4, 2)
