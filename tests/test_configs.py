import json
import re
import sys
from copy import deepcopy
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from focal_mm.config import datasets_of, dicts
from focal_mm.datasets import use_mini
from focal_mm.weights import ZOO

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
ALL_CONFIGS = sorted(
    p.relative_to(ROOT / 'configs').as_posix()
    for p in (ROOT / 'configs').glob('[!_]*/*.py')
    if p.parent.name != 'study'  # in cli/test_study.py; they are of no paper
)
# test_keypoints.py and test_ablation_configs.py have the others.
CONFIGS = [name for name in ALL_CONFIGS if not name.startswith(('keypoint/', 'ablation/'))]
TABLES = json.loads((Path(__file__).parent / 'data' / 'tables.json').read_text())
ROWS = {
    (row.get('method', 'imagenet'), row['backbone']): row
    for table in ('detection', 'segmentation', 'classification')
    for row in TABLES[table]
}
CLASSIFIERS, SEGMENTORS, MASK2FORMERS = (
    [name for name in CONFIGS if name.startswith(f'{folder}/')]
    for folder in ('imagenet', 'upernet', 'mask2former')
)
# The others have the same classes of mmdet, mmseg or mmpretrain as the first of their folder.
DISTINCT = {*{name.partition('/')[0]: name for name in reversed(CONFIGS)}.values(), *MASK2FORMERS}
IN22K = [name for name in CLASSIFIERS if '_in22k' in name]  # 90 epochs, and published weights
BY_CONFIG = {entry.config: entry for entry in ZOO.values()}
METRICS = {'Top 1 Accuracy': 'top1'}  # model-index's name, and the tables'
ZOO_METRICS = {'top-1': 'top1', 'box AP': 'box_AP'}  # the zoo's name, and the tables'
# Not of the papers, but of detrex and FocalNet-DINO.
DINOS = [name for name in CONFIGS if name.startswith('dino/')]
DETECTORS = sorted({*CONFIGS} - {*CLASSIFIERS, *SEGMENTORS, *MASK2FORMERS, *DINOS})
FOCALNETS, FOCAL_TRANSFORMERS, MIXFORMERS = (
    [name for name in CONFIGS if f'/{family}_' in name and name not in CLASSIFIERS + DINOS]
    for family in ('focalnet', 'focal', 'mixformer')
)
OWN_SCALES = ['dyhead/focal_l_2x.py', 'htc/focal_l_3x.py', 'lvis/mixformer_b4_1x.py']
ONE_SCALE = [name for name in DETECTORS if '_1x' in name and name not in FOCALNETS + OWN_SCALES]


@cache
def read(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


def load(name: str) -> Config:
    init_default_scope(read(name).default_scope)
    return read(name)


def build(cfg: Config) -> nn.Module:
    with torch.device('meta'):
        return MODELS.build(deepcopy(cfg.model))  # mmdet's DETRs change theirs


def parts(name: str) -> tuple[str, str, str | None]:
    """Method, backbone and schedule; segmentors have one schedule alone."""
    method, backbone, schedule = re.fullmatch(r'(\w+)/(\w+?)(?:_(1x|2x|3x))?\.py', name).groups()
    if method == 'mask2former':  # the tables' method tells COCO panoptic from ADE20K
        backbone, data = backbone.rsplit('_', 1)
        method += dict(ade20k='', panoptic='_panoptic')[data]
    return method, backbone, schedule


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters_are_the_papers(name):
    model = build(load(name))
    method, backbone, _ = parts(name)
    if 'params_M' not in ROWS.get((method, backbone), {}):
        pytest.skip('the paper does not give its size')
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    size = ROWS[method, backbone]['params_M']
    tolerance = dict(rel=0.012 if method == 'mask_rcnn' else 0.015)
    if isinstance(size, int):
        tolerance = dict(abs=0.8 if method == 'upernet' else 0.5)
    if backbone == 'focal_l':  # see docs/tables.md
        tolerance = dict(rel=0.028)
    if method == 'upernet' and name in FOCAL_TRANSFORMERS:  # its base says what is known of it
        tolerance = dict(rel=0.023)
    if method == 'mask2former':  # the published weights have more, as the config says
        tolerance = dict(rel=0.037)
    assert millions == pytest.approx(size, **tolerance)


@pytest.mark.parametrize('name', DETECTORS)
def test_optimizer_is_the_papers(name):
    """FocalNet paper, section 4.2, and the official configs; the other families share them."""
    wrapper = load(name).optim_wrapper
    if name.startswith('sparse_rcnn/'):
        assert wrapper == dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
            clip_grad=dict(max_norm=1, norm_type=2),
        )
    else:
        assert wrapper.type == 'AmpOptimWrapper'
        assert wrapper.optimizer == dict(
            type='AdamW',
            lr=5e-5 if name.startswith('dyhead/') else 1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.1 if name.startswith('htc/') else 0.05,
        )


@pytest.mark.parametrize('name', DETECTORS)
def test_schedule_is_the_papers(name):
    """Swin's 1x decays at 8 and 11, FocalNet's at 9 and 11."""
    cfg, schedule = load(name), parts(name)[2]
    first = 9 if name in FOCALNETS else 8
    epochs, *milestones = {'1x': (12, first, 11), '2x': (24, 16, 22), '3x': (36, 27, 33)}[schedule]
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[0] == dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500
    )
    assert cfg.param_scheduler[1].milestones == milestones


@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentor_is_trained_as_swin(name):
    """What the three papers say of UPerNet, and FocalNet's official configs."""
    cfg = load(name)
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    )
    assert 8 * cfg.train_dataloader.batch_size == 16 and cfg.train_cfg.max_iters == 160000
    assert cfg.param_scheduler == [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
        dict(type='PolyLR', eta_min=0, power=1, by_epoch=False, begin=1500, end=160000),
    ]
    side = ROWS[parts(name)[:2]]['crop']
    assert cfg.crop_size == (side, side) == tuple(cfg.model.data_preprocessor.size)
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    assert cfg.img_ratios == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@pytest.mark.parametrize('name', MASK2FORMERS)
def test_mask2former_is_trained_as_with_swin(name):
    cfg = load(name)
    head = cfg.model.get('panoptic_head', cfg.model.get('decode_head'))
    assert head.in_channels == [192, 384, 768, 1536]
    assert head.num_queries == (200 if 'panoptic' in name else 100)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)
    )
    batch = cfg.train_dataloader.batch_size * (16 if 'panoptic' in name else 8)
    assert batch == cfg.auto_scale_lr.base_batch_size == 16
    if 'ade20k' in name:
        assert cfg.crop_size == (640, 640) and cfg.train_cfg.max_iters == 160000
        assert cfg.img_ratios == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    else:  # 100 epochs
        assert cfg.train_cfg.max_iters == pytest.approx(100 * 118000 / 16, rel=0.001)


@pytest.mark.parametrize('name', FOCALNETS)
def test_focalnet_is_the_papers(name):
    """Sections 4.2 and 4.3, and the official configs."""
    backbone, (method, row, schedule) = load(name).model.backbone, parts(name)
    one, three = dict(t=0.1, s=0.2, b=0.3), dict(t=0.3, s=0.5, b=0.5)
    rate = 0.3 if schedule is None else (one if schedule == '1x' else three)[row.split('_')[1]]
    assert backbone.drop_path_rate == (0.2 if row == 'focalnet_t_deep' else rate)
    windows = {'mask_rcnn': 9, 'upernet': 9, 'mask2former': None, 'mask2former_panoptic': None}
    assert backbone.get('focal_windows') == windows.get(method, (11, 9, 9, 7))


@pytest.mark.parametrize('name', FOCAL_TRANSFORMERS)
def test_focal_transformer_is_the_papers(name):
    """Section 4.2; in UPerNet the drop path of Swin, whose code the authors follow."""
    backbone, (method, row, _) = load(name).model.backbone, parts(name)
    assert tuple(backbone.focal_windows) == (15, 13, 9, 7) and backbone.expand_sizes == 3
    rate = dict(t=0.2, s=0.3, b=0.5, l=0.5)[row.removeprefix('focal_')]
    assert backbone.drop_path_rate == (0.3 if method == 'upernet' else rate)


@pytest.mark.parametrize('name', MIXFORMERS)
def test_mixformer_has_the_stochastic_depth_of_its_arch(name):
    backbone, (_, row, _) = MODELS.build(load(name).model.backbone), parts(name)
    rates = dict(b1=0, b2=0.05, b3=0.1, b4=0.2)
    assert backbone.layers[-1].blocks[-1].drop_path.drop_prob == rates[row.split('_')[1]]


@pytest.mark.parametrize('name', MIXFORMERS)
def test_mixformer_keeps_the_statistics_of_imagenet(name):
    assert load(name).model.backbone.norm_eval


@pytest.mark.parametrize('name', sorted(set(CONFIGS) - set(CLASSIFIERS)))
def test_weights_are_those_of_the_arch(name):
    backbone = load(name).model.backbone
    if name.endswith('_o365_coco.py'):  # the whole detector has weights
        assert backbone.init_cfg is None and load(name).load_from
        return
    family = dict(FocalNet='focalnet', FocalTransformer='focal', MixFormer='mixformer')
    weights = backbone.init_cfg.checkpoint.removeprefix('focal://')
    data = 'in22k' if backbone.arch.startswith(('large', 'xlarge', 'huge')) else 'in1k'
    assert weights in ZOO and weights == f'{family[backbone.type]}_{backbone.arch}_{data}'


@pytest.mark.parametrize('name', sorted({*CLASSIFIERS} - {*IN22K}))
def test_classifier_is_trained_as_swin_or_as_in_paddleclas(name):
    """300 epochs from nothing, or 30 from ImageNet-22K, on 1024 images a step."""
    cfg, fine_tuning, mixformer = load(name), '_22k' in name, '/mixformer' in name
    small = mixformer and name[-4] in '0123'
    warm_up = 40 if mixformer and name[-4] in '56' else 20
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.train_cfg.max_epochs == (30 if fine_tuning else 300)
    assert cfg.auto_scale_lr.base_batch_size == 1024 == 8 * cfg.train_dataloader.batch_size
    assert optimizer.lr == (4e-5 if fine_tuning else 8e-4 if small else 1e-3)
    assert optimizer.weight_decay == (1e-8 if fine_tuning else 0.04 if small else 0.05)
    assert (
        cfg.param_scheduler[0].end
        == cfg.param_scheduler[1].begin
        == (5 if fine_tuning else warm_up)
    )
    assert cfg.optim_wrapper.get('clip_grad') == (None if mixformer else dict(max_norm=5.0))
    assert [dict(augment) for augment in cfg.model.train_cfg.augments] == [
        dict(type='Mixup', alpha=0.2 if mixformer else 0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    assert ('init_cfg' in cfg.model.backbone) == fine_tuning


@pytest.mark.parametrize('name', IN22K)
def test_pretraining_on_imagenet_22k_is_swins(name):
    """90 epochs on 4096 images a step, by the cosine of Swin's config.py. The learning rates in its
    swin_*_22k.yaml are those of 512 images.
    """
    cfg = load(name)
    warm_up, decay = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == decay.end == 90 and warm_up.end == decay.begin == 5
    assert cfg.auto_scale_lr.base_batch_size == 4096 == 32 * cfg.train_dataloader.batch_size
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (
        1e-3,
        0.05,
    )
    assert decay.type == 'CosineAnnealingLR' and decay.eta_min == pytest.approx(8 * 1.25e-6)
    assert warm_up.start_factor * 1e-3 == pytest.approx(8 * 1.25e-7)
    for loader, folder in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        dataset = loader.dataset
        assert (dataset.type, dataset.data_root) == ('ImageNet21k', cfg.data_root)
        assert folder in (dataset.get('data_prefix'), dataset.split)


@pytest.mark.parametrize('name', IN22K)
def test_published_classes_of_imagenet_22k(name):
    cfg = load(name)
    classes = 21842 if '_fl' in name else 21841  # the authors count one more
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert 'init_cfg' not in cfg.model.backbone


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifier_sees_the_papers_image_size(name):
    row = ROWS.get(('imagenet', parts(name)[1]), dict(input=224))
    cfg, side = load(name), 384 if re.search('/focalnet_x?l_fl', name) else row['input']
    train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
    assert train[1].scale == side == test[2].crop_size
    assert test[1].scale == side * 256 // 224


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_only_focal_transformer_erases_nothing(name):
    """Focal Transformer paper, section 4.1."""
    steps = [step.type for step in load(name).train_dataloader.dataset.pipeline]
    assert ('RandomErasing' in steps) == ('/focal_' not in name)


@pytest.mark.parametrize(
    'name',
    [
        'imagenet/focalnet_t.py',
        'imagenet/focal_t.py',
        'mask_rcnn/focalnet_t_1x.py',
        'mask_rcnn/focal_t_1x.py',
        'mask_rcnn/mixformer_b1_1x.py',
        'upernet/focal_t.py',
        'reppoints/focal_t_3x.py',
        'dyhead/focal_l_2x.py',
        'htc/focal_l_3x.py',
        *MASK2FORMERS,
    ],
)
def test_norms_and_position_biases_do_not_decay(name):
    cfg = load(name)
    model = build(cfg)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    decays = {
        id(group['params'][0]): group['weight_decay'] for group in wrapper.optimizer.param_groups
    }
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for parameter in module.parameters()
    }
    decay = cfg.optim_wrapper.optimizer.weight_decay
    tables = 'relative_position_bias_table|query_embed|query_feat|level_embed'
    for key, parameter in model.named_parameters():
        free = (
            id(parameter) in norms
            or re.search(tables, key)
            or (name in CLASSIFIERS and parameter.ndim == 1)
        )
        assert decays[id(parameter)] == (0 if free else decay), key


def test_cascade_refines_boxes_as_in_the_official_config():
    heads = load('cascade/focalnet_t_3x.py').model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds for head in heads] == [
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    ]


@pytest.mark.parametrize('name', ONE_SCALE)
def test_training_images_have_one_scale(name):
    """Focal Transformer paper and MixFormer paper, section 4.2."""
    pipeline = load(name).train_dataloader.dataset.pipeline
    assert [step for step in pipeline if 'Resize' in step.type] == [
        dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    ]


@pytest.mark.parametrize(
    'name', sorted({*DETECTORS} - {*ONE_SCALE, *OWN_SCALES, 'reppoints/focal_t_3x.py'})
)
def test_training_images_are_resized_as_in_sparse_rcnn(name):
    resize, crop = load(name).train_dataloader.dataset.pipeline[3].transforms
    sides = [(side, 1333) for side in range(480, 801, 32)]
    assert resize[0].scales == sides == crop[2].scales
    assert crop[0].scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop[1].crop_type, crop[1].crop_size) == ('absolute_range', (384, 600))


def test_reppoints_has_the_scales_of_swin():
    (resize,) = (
        step
        for step in load('reppoints/focal_t_3x.py').train_dataloader.dataset.pipeline
        if 'Resize' in step.type
    )
    assert resize.scales == [(side, 1333) for side in range(480, 961, 32)] and resize.keep_ratio


@pytest.fixture
def take_a_step(train_and_test):
    def take(cfg: Config) -> None:
        changed, predicted = train_and_test(cfg)
        assert 'backbone.patch_embed.proj.weight' in changed
        assert {'pred_sem_seg', 'pred_instances', 'pred_panoptic_seg', 'pred_score'} & set(
            predicted.keys()
        )

    return take


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=() if name in DISTINCT else pytest.mark.onedl)
        for name in sorted({*CONFIGS} - {*DINOS, *IN22K})
    ],
)
def test_takes_a_step_of_training_and_testing(take_a_step, name):
    take_a_step(use_mini(load(name)))


@pytest.mark.parametrize('name', IN22K)
def test_pretraining_takes_a_step_of_training_and_testing(take_a_step, name):
    """With a small network: a step of FocalNet-H takes 11 GB."""
    cfg = use_mini(load(name))
    cfg.model.backbone.embed_dims = 8
    cfg.model.head.in_channels = 64
    if cfg.model.backbone.type == 'FocalTransformer':
        cfg.model.backbone.num_heads = 1
    take_a_step(cfg)


@pytest.mark.parametrize('name', [name for name in DINOS if '/focalnet_l_' in name])
def test_dino_takes_a_step_of_training_and_testing(take_a_step, name):
    """With a small network: FocalNet-L to H differ in sizes alone."""
    cfg = use_mini(load(name))
    cfg.model.backbone.embed_dims = 8
    cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 2
    cfg.model.neck.in_channels = [8 * 2**i for i in cfg.model.backbone.out_indices]
    take_a_step(cfg)


def test_dyhead_is_trained_as_by_its_authors():
    (dataset,) = datasets_of(load('dyhead/focal_l_2x.py').train_dataloader)
    assert dataset.type.endswith('CocoDataset') and dataset.ann_file.endswith('train2017.json')
    (resize,) = (step for step in dataset.pipeline if 'Resize' in step.type)
    assert resize.scale == [(2000, 480), (2000, 1200)] and resize.keep_ratio


def test_htc_is_trained_and_tested_as_in_the_paper():
    """Focal Transformer paper, section 4.2."""
    cfg = load('htc/focal_l_3x.py')
    (resize,) = (step for step in cfg.train_pipeline if 'Resize' in step.type)
    assert resize.scale == [(1600, 400), (1600, 1400)] and resize.keep_ratio
    assert cfg.model.test_cfg.rcnn.nms == dict(type='soft_nms', iou_threshold=0.5)
    assert cfg.tta_model.tta_cfg.nms.type == 'soft_nms'


@pytest.mark.parametrize('installed', [False, True])
def test_htc_has_instaboost_where_it_is_installed(monkeypatch, installed):
    package = ModuleType('instaboostfast')
    package.__spec__ = ModuleSpec('instaboostfast', None)
    monkeypatch.setitem(sys.modules, 'instaboostfast', package if installed else None)
    steps = Config.fromfile(ROOT / 'configs/htc/focal_l_3x.py').train_pipeline
    first = ['LoadImageFromFile', *['InstaBoost'] * installed, 'LoadAnnotations']
    assert [step.type for step in steps][: len(first)] == first


def test_lvis_repeats_rare_classes_as_in_mmdet():
    ours, theirs = map(
        Config.fromfile,
        (
            ROOT / 'configs/lvis/mixformer_b4_1x.py',
            'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        ),
    )
    for node in dicts(ours._cfg_dict):
        node.pop('_scope_', None)
    for key in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
        assert ours[key] == theirs[key]
    for key in ('roi_head', 'test_cfg'):
        assert ours.model[key] == theirs.model[key]


@pytest.mark.parametrize('name', DINOS)
def test_dino_is_trained_as_by_its_authors(name):
    """detrex's and FocalNet-DINO's configs; epochs on Objects365 are the DINO paper's."""
    cfg = load(name)
    epochs, step = next(
        value
        for key, value in {
            '_12e': (12, 11),
            '_36e': (36, 30),
            '_o365.': (26, 24),
            '_o365_coco': (18, 16),
        }.items()
        if key in name
    )
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].end == epochs
    assert cfg.param_scheduler[0].milestones == [step]
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult == 0.1
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert cfg.auto_scale_lr.base_batch_size == (64 if name.endswith('_o365.py') else 16)


@pytest.mark.parametrize('name', DINOS)
def test_dino_is_built_as_by_its_authors(name):
    """What a checkpoint has no trace of: padding, embeddings, the division of the context."""
    cfg = load(name)
    model, detrex = cfg.model, 'o365' not in name
    backbone = MODELS.build(dict(model.backbone, depths=(1, 1, 1, 1), embed_dims=8, init_cfg=None))
    modulation = backbone.layers[0].blocks[0].modulation
    divided = not detrex and '/focalnet_h_' not in name
    assert modulation.normalize_modulator == divided
    assert backbone.patch_embed.proj.padding == (2, 2)
    encoding = model.positional_encoding
    assert (encoding.offset, encoding.temperature) == ((-0.5, 10000) if detrex else (0.0, 20))
    assert model.dn_cfg.box_noise_scale == (1.0 if detrex else 0.4)
    assert model.neck.bias and model.num_queries == 900
    levels = 4 if '_4scale_' in name else 5
    assert (model.num_feature_levels if levels == 5 else 4) == levels == model.neck.num_outs
    (dataset,) = datasets_of(cfg.train_dataloader)
    objects365 = name.endswith('_o365.py')
    assert dataset.type == ('Objects365V2Dataset' if objects365 else 'CocoDataset')
    assert model.bbox_head.num_classes == (365 if objects365 else 80)


@pytest.mark.parametrize('name', [name for name in DINOS if name.endswith('_o365_coco.py')])
def test_dino_is_fine_tuned_on_images_of_one_and_a_half_times_the_size(name):
    """DINO paper; the usual sizes are those of the 12 epochs."""
    usual, large = (
        load(config).train_dataloader.dataset.pipeline[3].transforms
        for config in ('dino/focalnet_l_4scale_12e.py', name)
    )

    def enlarged(sizes):
        return [tuple(round(1.5 * side) for side in size) for size in sizes]

    (resize,), (small, crop, again) = usual
    assert [(a, min(b, 2000)) for a, b in enlarged(resize.scales)] == large[0][0].scales
    assert large[0][0].scales == large[1][2].scales and again.scales == resize.scales
    assert enlarged(small.scales) == large[1][0].scales
    assert enlarged([crop.crop_size]) == [large[1][1].crop_size]
    assert load(name).test_dataloader.dataset.pipeline[1].scale == (2000, 1200)


@pytest.mark.parametrize('name', DETECTORS)
def test_masks_are_loaded_and_evaluated_where_there_is_a_head_for_them(name):
    cfg = load(name)
    masks = 'mask_head' in cfg.model.get('roi_head', {})
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        (dataset,) = datasets_of(loader)
        (load_annotations,) = (step for step in dataset.pipeline if step.type == 'LoadAnnotations')
        assert load_annotations.get('with_mask', False) == masks
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert ('segm' in evaluator.metric) == masks


def test_index_lists_every_config():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = [m for path in index for m in yaml.safe_load((ROOT / path).read_text())['Models']]
    # Some stand in the table of an ablation as well.
    assert sorted({m['Config'] for m in models}) == [f'configs/{name}' for name in ALL_CONFIGS]
    names = [m['Name'] for m in models]
    assert len(names) == len(set(names))


@pytest.mark.parametrize('folder', sorted({name.split('/')[0] for name in CONFIGS}))
def test_index_gives_the_papers_figures(folder):
    index = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())
    for model in index['Models']:
        method, backbone, schedule = parts(model['Config'].removeprefix('configs/'))
        results = {
            METRICS.get(name, name.replace(' ', '_')): value
            for result in model.get('Results', ())
            for name, value in result['Metrics'].items()
        }
        row = ROWS.get((method, backbone))
        if row is None:  # of the authors' README, and so of the zoo
            entry = BY_CONFIG.get(model['Config'].removeprefix('configs/'))
            published = entry.results if entry else {}
            assert results == {ZOO_METRICS[name]: value for name, value in published.items()}
            continue
        schedules = row.get('schedules', {})  # LVIS and Mask2Former have one without a name
        figures = (
            schedules.get(schedule, schedules.get(''))
            if schedules
            else {key: row[key] for key in ('mIoU', 'mIoU_ms', 'top1') if key in row}
        )
        assert results == figures
        assert model['Metadata'].get('Parameters (M)') == row.get('params_M')
        assert model['Metadata'].get('FLOPs (G)') == row.get('flops_G')
        assert model['Metadata'].get('Throughput (images/s, V100)') == row.get('throughput_V100')


@pytest.mark.parametrize('entry', [e for e in ZOO.values() if e.options], ids=lambda e: e.name)
def test_backbone_has_the_options_of_its_published_file(entry):
    """A file has no trace of them, so that another value would only show in the results."""
    with torch.device('meta'):
        net = MODELS.build(dict(load(entry.config).model.backbone, init_cfg=None))
    for stage in net.layers:
        for block in stage.blocks:
            assert {key: getattr(block.modulation, key) for key in entry.options} == entry.options


def test_index_names_the_published_weights_of_classifiers():
    index = yaml.safe_load((ROOT / 'configs/imagenet/metafile.yml').read_text())
    given = {model['Config']: model['Weights'] for model in index['Models'] if 'Weights' in model}
    assert given == {
        f'configs/{entry.config}': f'focal://{entry.name}'
        for entry in ZOO.values()
        if entry.kind == 'classifier' and entry.config and entry.addresses
    }


def test_config_of_the_page_on_mmdet_builds(tmp_path):
    page = (ROOT / 'docs/mmdet.md').read_text()
    code = re.search(r'```python\n(_base_.*?)```', page, re.DOTALL)[1]
    (tmp_path / 'mine.py').write_text(code)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope(cfg.default_scope)
    modulation = build(cfg).backbone.layers[0].blocks[0].modulation
    assert modulation.focal_layers[0][0].kernel_size == (9, 9)
