import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import focal_mm  # noqa: F401
from focal_mm.weights import ZOO

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p.relative_to(ROOT / 'configs').as_posix()
                 for p in (ROOT / 'configs').glob('[!_]*/*.py'))
TABLES = json.loads((Path(__file__).parent / 'data' / 'tables.json').read_text())
ROWS = {row['backbone']: row for row in TABLES['detection'] if row['method'] == 'mask_rcnn'}
FOCALNETS, FOCAL_TRANSFORMERS, MIXFORMERS = (
    [name for name in CONFIGS if name.startswith(f'mask_rcnn/{family}_')]
    for family in ('focalnet', 'focal', 'mixformer'))
ONE_SCALE = [name for name in FOCAL_TRANSFORMERS + MIXFORMERS if '_1x' in name]


@cache
def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg: Config) -> nn.Module:
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def row_and_schedule(name: str) -> tuple[str, str]:
    return re.fullmatch(r'mask_rcnn/(\w+)_(1x|3x)\.py', name).groups()


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters_are_the_papers(name):
    model = build(load(name))
    row = row_and_schedule(name)[0]
    if row not in ROWS:
        pytest.skip('the paper does not give its size')
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    size = ROWS[row]['params_M']
    rounding = dict(abs=0.5) if isinstance(size, int) else dict(rel=0.012)
    assert millions == pytest.approx(size, **rounding)


@pytest.mark.parametrize('name', CONFIGS)
def test_optimizer_and_schedule_are_the_papers(name):
    """FocalNet paper, section 4.2, and the official configs; the other families share them."""
    cfg, (_, schedule) = load(name), row_and_schedule(name)
    optimizer, epochs = cfg.optim_wrapper.optimizer, dict([('1x', 12), ('3x', 36)])[schedule]
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert optimizer == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[0] == dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
    assert cfg.param_scheduler[1].milestones == dict([('1x', [9, 11]), ('3x', [27, 33])])[schedule]


@pytest.mark.parametrize('name', FOCALNETS)
def test_focalnet_is_the_papers(name):
    """Section 4.2; the deeper tiny net as in the official config."""
    backbone, (row, schedule) = load(name).model.backbone, row_and_schedule(name)
    rates = dict([('1x', dict(t=0.1, s=0.2, b=0.3)), ('3x', dict(t=0.3, s=0.5, b=0.5))])[schedule]
    assert backbone.focal_windows == 9
    assert backbone.drop_path_rate == (
        0.2 if row == 'focalnet_t_deep' else rates[row.split('_')[1]])


@pytest.mark.parametrize('name', FOCAL_TRANSFORMERS)
def test_focal_transformer_is_the_papers(name):
    """Section 4.2."""
    backbone, (row, _) = load(name).model.backbone, row_and_schedule(name)
    assert tuple(backbone.focal_windows) == (15, 13, 9, 7)
    assert backbone.drop_path_rate == dict(t=0.2, s=0.3, b=0.5)[row.removeprefix('focal_')]


@pytest.mark.parametrize('name', MIXFORMERS)
def test_mixformer_has_the_stochastic_depth_of_its_arch(name):
    backbone, (row, _) = MODELS.build(load(name).model.backbone), row_and_schedule(name)
    rates = dict(b1=0, b2=0.05, b3=0.1, b4=0.2)
    assert backbone.layers[-1].blocks[-1].drop_path.drop_prob == rates[row.split('_')[1]]


@pytest.mark.parametrize('name', MIXFORMERS)
def test_mixformer_keeps_the_statistics_of_imagenet(name):
    assert load(name).model.backbone.norm_eval


@pytest.mark.parametrize('name', CONFIGS)
def test_weights_are_those_of_the_arch(name):
    backbone = load(name).model.backbone
    family = dict(FocalNet='focalnet', FocalTransformer='focal', MixFormer='mixformer')
    weights = backbone.init_cfg.checkpoint.removeprefix('focal://')
    assert weights in ZOO and weights == f'{family[backbone.type]}_{backbone.arch}_in1k'


@pytest.mark.parametrize('name', ['focalnet_t_1x', 'focal_t_1x', 'mixformer_b1_1x'])
def test_norms_and_position_biases_do_not_decay(name):
    cfg = load(f'mask_rcnn/{name}.py')
    model = build(cfg)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    decays = {id(group['params'][0]): group['weight_decay']
              for group in wrapper.optimizer.param_groups}
    norms = {id(parameter) for module in model.modules()
             if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))
             for parameter in module.parameters()}
    for name, parameter in model.named_parameters():
        free = id(parameter) in norms or 'relative_position_bias_table' in name
        assert decays[id(parameter)] == (0 if free else 0.05), name


@pytest.mark.parametrize('name', ONE_SCALE)
def test_training_images_have_one_scale(name):
    """Focal Transformer paper and MixFormer paper, section 4.2."""
    pipeline = load(name).train_dataloader.dataset.pipeline
    assert [step for step in pipeline if 'Resize' in step.type] == [
        dict(type='Resize', scale=(1333, 800), keep_ratio=True)]


@pytest.mark.parametrize('name', sorted(set(CONFIGS) - set(ONE_SCALE)))
def test_training_images_are_resized_as_in_sparse_rcnn(name):
    resize, crop = load(name).train_dataloader.dataset.pipeline[3].transforms
    sides = [(side, 1333) for side in range(480, 801, 32)]
    assert resize[0].scales == sides == crop[2].scales
    assert crop[0].scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop[1].crop_type, crop[1].crop_size) == ('absolute_range', (384, 600))


def test_index_lists_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = [m for path in index for m in yaml.safe_load((ROOT / path).read_text())['Models']]
    assert sorted(m['Config'] for m in models) == [f'configs/{name}' for name in CONFIGS]


def test_index_gives_the_papers_figures():
    for model in yaml.safe_load((ROOT / 'configs/mask_rcnn/metafile.yml').read_text())['Models']:
        row, schedule = row_and_schedule(model['Config'].removeprefix('configs/'))
        results = {name.replace(' ', '_'): value for result in model.get('Results', ())
                   for name, value in result['Metrics'].items()}
        assert results == (ROWS[row]['schedules'][schedule] if row in ROWS else {})
        if row in ROWS:
            assert model['Metadata']['Parameters (M)'] == ROWS[row]['params_M']
            assert model['Metadata']['FLOPs (G)'] == ROWS[row]['flops_G']


def test_config_of_the_readme_builds(tmp_path):
    code = re.search(r'```python\n(_base_.*?)```', (ROOT / 'README.md').read_text(), re.S)[1]
    (tmp_path / 'mine.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope(cfg.default_scope)
    modulation = build(cfg).backbone.layers[0].blocks[0].modulation
    assert modulation.focal_layers[0][0].kernel_size == (9, 9)
