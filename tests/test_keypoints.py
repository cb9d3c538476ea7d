"""The config of keypoints; it needs mmpose, which is not part of either stack."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope

from focal_mm.datasets import use_mini

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
CONFIG = 'focal_mm::keypoint/mixformer_b4_256x192.py'


def test_index_gives_the_papers_figures():
    index = yaml.safe_load((ROOT / 'configs' / 'keypoint' / 'metafile.yml').read_text())
    rows = json.loads((ROOT / 'tests' / 'data' / 'tables.json').read_text())['detection']
    (row,) = (row for row in rows if row['method'] == 'keypoint')
    assert index['Models'][0]['Results'][0]['Metrics'] == row['schedules']['']


def test_config_takes_a_step_of_training_and_testing():
    pytest.importorskip('mmpose', reason='mmpose is not installed (README)')
    cfg = use_mini(Config.fromfile(CONFIG))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    train, val = (
        DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.val_dataloader)
    )
    losses = model.train_step(pseudo_collate([train[0], train[1]]), wrapper)
    assert losses['loss'].isfinite()
    with torch.no_grad():
        (predicted,) = model.eval().test_step(pseudo_collate([val[0]]))
    assert predicted.pred_instances.keypoints.shape == (1, 4, 2)
