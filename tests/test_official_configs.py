"""Our detectors and segmentors beside the authors', field by field.

``official_configs.json`` holds what the files of microsoft/FocalNet and of Swin Transformer set, in
the words of mmdet 2 and mmseg 0; here they are put into those of mmdet 3 and mmseg 1. Focal
Transformer and MixFormer published no such files: Focal Transformer's authors say that they follow
Swin's code (detection/get_started.md and segmentation/get_started.md), MixFormer's paper compares
with it. What is not in ``EXPLAINED`` must be equal, and what is in it must differ. What differs on
purpose everywhere:

- Another backbone than Swin's has its own channels, and with them its neck and heads.
- Batches: 8 GPUs x 2 images for all, where some files have one image a GPU, for 16 GPUs.
- Norms do not decay. The official key for that, ``norm``, misses the norms of heads by their names
  alone, ``bn`` and ``gn``; so it would most of MixFormer's.
- mmdet 3 always suppresses level by level and cuts the proposals once, so that of mmdet 2's
  ``nms_across_levels`` and ``nms_post`` nothing is left.
"""

import json
from copy import deepcopy
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
OFFICIAL = json.loads((ROOT / 'tests' / 'data' / 'official_configs.json').read_text())
SOURCES = {name: source for source in OFFICIAL['sources'] for name in source['configs']}
CONFIGS = list(SOURCES)
FOCALNETS = [name for name in CONFIGS if SOURCES[name]['source'].endswith('/FocalNet')]
OTHERS = sorted({*CONFIGS} - {*FOCALNETS})
# A method that neither Swin nor Focal Transformer published, as FocalNet's authors trained it, who
# are Focal Transformer's; and RetinaNet with the recipe of Mask R-CNN (the paper's section 4.2).
RELATED = {
    'atss/focal_t_3x.py': 'atss/focalnet_t_3x.py',
    'sparse_rcnn/focal_t_3x.py': 'sparse_rcnn/focalnet_t_3x.py',
    **{
        f'retinanet/focal_{size}_{schedule}.py': f'mask_rcnn/focal_{size}_{schedule}.py'
        for size in 'tsb'
        for schedule in ('1x', '3x')
    },
}
# For each field: the configs that differ from the official file, and why.
EXPLAINED = {
    'drop_path_rate': {
        'mask_rcnn/focal_[tsb]_1x.py': "the paper's 0.2, 0.3 and 0.5 (section 4.2)",
        'mask_rcnn/focal_[sb]_3x.py': "the paper's 0.3 and 0.5 (section 4.2)",
        'mask_rcnn/mixformer_b[124]_1x.py': "the arch's; the paper leaves it to its appendix",
        'mask_rcnn/mixformer_b[123]_3x.py': "the arch's; the paper leaves it to its appendix",
        'upernet/mixformer_*.py': "the arch's; the paper leaves it to its appendix",
    },
    'train_pipeline': {
        'mask_rcnn/focal_?_1x.py': 'one scale of images (section 4.2)',
        'mask_rcnn/mixformer_*_1x.py': 'one scale of images (section 4.2)',
        'upernet/focal_l.py': '640x640 pixels (section 4.3)',
    },
    'test_pipeline': {'upernet/focal_l.py': '640x640 pixels (section 4.3)'},
}
# Names of Swin's RepPoints V2, and ours.
RENAMED = dict(
    RPDQualityFocalLoss='QualityFocalLoss',
    RPDGIoULoss='GIoULoss',
    SEPFocalLoss='focal_mm.SeparateFocalLoss',
    BiFPN='focal_mm.BiFPN',
    RepPointsV2Head='focal_mm.RepPointsV2Head',
    PointAssignerV2='PointAssigner',
    ATSSAssignerV2='ATSSAssigner',
)
COSTS = ('cls_cost', 'reg_cost', 'iou_cost')  # in mmdet 3 a list, match_costs


def merge(common: Any, own: Any) -> Any:
    if isinstance(common, dict) and isinstance(own, dict):
        return {
            key: merge(common.get(key, own.get(key)), own.get(key, common.get(key)))
            for key in (*common, *own)
        }
    return own


@cache
def official(name: str) -> dict:
    source, method = SOURCES[name], name.split('/', maxsplit=1)[0]
    return merge(source['methods'][method], source['configs'][name]['settings'])


def explained(field: str, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in EXPLAINED[field])


@cache
def ours(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / name)


def plain(node: Any) -> Any:
    """Lists for tuples, and no scopes."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def translated(node: Any) -> Any:
    """Part of a model in the words of mmdet 3."""
    if isinstance(node, list):
        return [translated(child) for child in node]
    if not isinstance(node, dict):
        return node
    node = {
        key: translated(value)
        for key, value in node.items()
        if key not in ('nms_across_levels', 'nms_post')
    }
    if 'cls_cost' in node:
        node['match_costs'] = [node.pop(cost) for cost in COSTS]
    if node.get('type') == 'BBoxL1Cost':
        node.setdefault('box_format', 'xyxy')  # mmdet 2's default
    if node.get('type') == 'BiFPN':  # these say that nothing is left out
        for key in ('start_level', 'add_extra_convs', 'no_norm_on_lateral'):
            assert not node.pop(key)
    if node.get('type') == 'RepPointsV2Head':  # our head has no other kernels and boxes than these
        assert (node.pop('first_kernel_size'), node.pop('kernel_size')) == (3, 1)
        assert node.pop('transform_method') == 'exact_minmax'
    if node.get('type') in RENAMED:
        node['type'] = RENAMED[node['type']]
    return node


def official_part(name: str, part: str) -> Any:
    """Part of a model in the words of mmdet 3, with the channels of our backbone."""
    node = translated(deepcopy(official(name)['model'].get(part)))
    if name in OTHERS and part in ('neck', 'decode_head', 'auxiliary_head') and node:
        theirs = official(name)['model']['backbone']['embed_dim']
        scale = channels(name) / theirs
        single = isinstance(node['in_channels'], int)
        scaled = [scale * width for width in [node['in_channels']] * single or node['in_channels']]
        node['in_channels'] = scaled[0] if single else scaled
    if name.startswith('reppoints/') and part == 'bbox_head':  # ours has no assigner of its own
        assigner = official(name)['model']['train_cfg']['heatmap']['assigner']
        assert assigner['type'] == 'PointHMAssigner' and assigner['gaussian_bump']
        node['corner_iou'] = assigner['gaussian_iou']
    if name.startswith('reppoints/') and part == 'train_cfg':
        del node['heatmap']
    return node


def build_backbone(name: str) -> nn.Module:
    cfg = ours(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model.backbone)


def channels(name: str) -> int:
    """Channels of the first stage of our backbone."""
    return build_backbone(name).layers[0].blocks[0].norm1.weight.numel()


def translated_step(step: dict) -> dict | None:
    """A step of a training pipeline; None where its work is the data preprocessor's."""
    step = deepcopy(step)
    if step['type'] == 'RandomFlip':
        return dict(type='RandomFlip', prob=step['flip_ratio' if 'flip_ratio' in step else 'prob'])
    if step['type'] == 'AutoAugment':
        return dict(
            type='RandomChoice',
            transforms=[
                [translated_step(child) for child in policy] for policy in step['policies']
            ],
        )
    if step['type'] == 'Resize' and 'ratio_range' in step:
        return dict(
            type='RandomResize',
            scale=step['img_scale'],
            ratio_range=step['ratio_range'],
            keep_ratio=True,
        )
    if step['type'] == 'Resize':
        return dict(type='RandomChoiceResize', scales=step['img_scale'], keep_ratio=True)
    if step['type'] in ('Normalize', 'Pad', 'DefaultFormatBundle'):
        return None
    if step['type'] in ('LoadRPDV2Annotations', 'RPDV2FormatBundle'):  # our head makes its maps
        return None
    if step['type'] == 'Collect':
        return dict(type='PackDetInputs' if 'gt_bboxes' in step['keys'] else 'PackSegInputs')
    if step.get('with_bbox'):
        step.setdefault('with_mask', False)
    return step


@pytest.mark.parametrize(
    'part',
    [
        'neck',
        'rpn_head',
        'roi_head',
        'bbox_head',
        'decode_head',
        'auxiliary_head',
        'train_cfg',
        'test_cfg',
    ],
)
@pytest.mark.parametrize('name', CONFIGS)
def test_heads_and_necks_are_the_official_ones(name, part):
    assert plain(ours(name).model.get(part)) == official_part(name, part)


@pytest.mark.parametrize('name', FOCALNETS)
def test_backbone_is_the_official_one(name):
    cfg, wanted = ours(name), official(name)['model']['backbone']
    net = build_backbone(name)
    modulations = [layer.blocks[0].modulation for layer in net.layers]
    assert dict(
        type=cfg.model.backbone.type,
        embed_dim=net.patch_embed.proj.out_channels,
        depths=[len(layer.blocks) for layer in net.layers],
        mlp_ratio=net.layers[0].blocks[0].mlp.fc1.out_features / net.patch_embed.proj.out_channels,
        drop_rate=cfg.model.backbone.get('drop_rate', 0),
        drop_path_rate=cfg.model.backbone.drop_path_rate,
        patch_norm=hasattr(net.patch_embed, 'norm'),
        out_indices=list(cfg.model.backbone.get('out_indices', (0, 1, 2, 3))),
        use_checkpoint=cfg.model.backbone.get('with_cp', False),
        focal_windows=[m.focal_layers[0][0].kernel_size[0] for m in modulations],
        focal_levels=[len(m.focal_layers) for m in modulations],
        use_conv_embed=net.patch_embed.proj.kernel_size[0] > 4,
        use_layerscale=isinstance(net.layers[0].blocks[0].gamma_1, nn.Parameter),
    ) == dict(dict(use_conv_embed=False, use_layerscale=False), **wanted)


@pytest.mark.parametrize('name', OTHERS)
def test_backbone_is_regularized_and_read_as_swin(name):
    backbone, wanted = ours(name).model.backbone, official(name)['model']['backbone']
    path = build_backbone(name).layers[-1].blocks[-1].drop_path
    rate = getattr(path, 'drop_prob', 0)
    assert (rate != wanted['drop_path_rate']) == explained('drop_path_rate', name)
    assert [*backbone.get('out_indices', (0, 1, 2, 3))] == wanted['out_indices']
    assert backbone.get('with_cp', False) == wanted['use_checkpoint']
    for key in ('drop_rate', 'attn_drop_rate'):
        assert backbone.get(key, 0) == wanted[key]


def pipeline(cfg: Config) -> list[dict]:
    steps = plain(cfg.train_dataloader.dataset.pipeline)
    for step in steps:
        step.pop('backend_args', None)
        if step.get('with_bbox'):
            step.setdefault('with_mask', False)
    return steps


@pytest.mark.parametrize('name', CONFIGS)
def test_training_images_are_prepared_as_officially(name):
    cfg, steps = ours(name), official(name)['train_pipeline']
    wanted = [step for step in map(translated_step, steps) if step]
    assert (pipeline(cfg) != wanted) == explained('train_pipeline', name)
    norm, pad = (
        next(step for step in steps if step['type'] == kind) for kind in ('Normalize', 'Pad')
    )
    prepared = cfg.model.data_preprocessor
    assert (prepared.mean, prepared.std, prepared.bgr_to_rgb) == (
        norm['mean'],
        norm['std'],
        norm['to_rgb'],
    )
    if 'size_divisor' in pad:
        assert prepared.pad_size_divisor == pad['size_divisor']
    elif not explained('train_pipeline', name):
        assert [*prepared.size, prepared.pad_val, prepared.seg_pad_val] == [
            *pad['size'],
            pad['pad_val'],
            pad['seg_pad_val'],
        ]


@pytest.mark.parametrize('name', CONFIGS)
def test_optimizer_is_the_official_one(name):
    wrapper, optimizer = ours(name).optim_wrapper, dict(official(name)['optimizer'])
    hook = official(name).get('optimizer_config', {})
    optimizer.pop('paramwise_cfg', None)
    assert plain(wrapper.optimizer) == optimizer
    assert plain(wrapper.get('clip_grad')) == hook.get('grad_clip')
    assert hook.get('update_interval', 1) == wrapper.get('accumulative_counts', 1)
    assert wrapper.type == ('AmpOptimWrapper' if hook.get('use_fp16') else 'OptimWrapper')


@pytest.mark.parametrize(
    'name', [name for name in CONFIGS if '_t_' in name or '_t.' in name or 'mixformer_b1' in name]
)
def test_learning_rate_and_decay_of_every_parameter_are_the_official_ones(name):
    cfg = ours(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(deepcopy(cfg.model))  # mmdet moves settings into its heads
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    paramwise = [
        cfg.optim_wrapper.get('paramwise_cfg'),
        official(name)['optimizer'].get('paramwise_cfg'),
    ]
    own, wanted = (
        {
            names[id(parameter)]: (group['lr'], group['weight_decay'])
            for group in build_optim_wrapper(
                model,
                dict(
                    type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer, paramwise_cfg=keys
                ),
            ).optimizer.param_groups
            for parameter in group['params']
        }
        for keys in paramwise
    )
    norms = {
        f'{path}.{key}'
        for path, module in model.named_modules()
        if isinstance(module, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for key, _ in module.named_parameters()
    }
    wanted.update({key: (wanted[key][0], 0) for key in norms})
    assert own == wanted and len(own) == len(names)


@pytest.mark.parametrize('name', CONFIGS)
def test_schedule_is_the_official_one(name):
    cfg, settings = ours(name), official(name)
    warm_up, decay = cfg.param_scheduler
    wanted, length = settings['lr_config'], settings['runner']
    if 'max_epochs' in length:
        assert cfg.train_cfg.max_epochs == decay.end == length['max_epochs']
        assert decay.type == 'MultiStepLR' and decay.milestones == wanted['step']
        # FocalNet's files leave the warm-up to mmdet 2, whose schedules Swin's repository contains.
        assert (warm_up.type, warm_up.end, warm_up.start_factor) == (
            'LinearLR',
            wanted.get('warmup_iters', 500),
            wanted.get('warmup_ratio', 0.001),
        )
    else:
        assert cfg.train_cfg.max_iters == decay.end == length['max_iters']
        assert (decay.type, decay.power, decay.eta_min) == (
            'PolyLR',
            wanted['power'],
            wanted['min_lr'],
        )
        assert (warm_up.type, warm_up.end, warm_up.start_factor) == (
            'LinearLR',
            wanted['warmup_iters'],
            wanted['warmup_ratio'],
        )


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('upernet/')])
def test_images_are_tested_at_the_official_size(name):
    flip_aug = official(name)['test_pipeline'][1]
    (resize,) = (
        step for step in ours(name).test_dataloader.dataset.pipeline if step.type == 'Resize'
    )
    assert (list(resize.scale) != flip_aug['img_scale']) == explained('test_pipeline', name)
    assert resize.keep_ratio


@pytest.mark.parametrize('name', CONFIGS)
def test_batch_is_the_official_one(name):
    """16 images: on 8 GPUs, or on 16 where the official file has one image a GPU."""
    assert official(name)['samples_per_gpu'] in (1, 2, None)  # None: mmdet's, 2
    assert 8 * ours(name).train_dataloader.batch_size == 16


@pytest.mark.parametrize('name', RELATED)
def test_config_without_a_file_is_trained_as_its_relative(name):
    cfg, relative = ours(name), ours(RELATED[name])
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert plain(cfg[key]) == plain(relative[key])
    resizes, wanted = (
        [step for step in pipeline(config) if step['type'] != 'LoadAnnotations']
        for config in (cfg, relative)
    )
    assert resizes == wanted
    if name.startswith('retinanet/'):
        assert cfg.model.backbone.drop_path_rate == relative.model.backbone.drop_path_rate
    else:  # Focal-T's own, which is the paper's in detection
        assert cfg.model.backbone.drop_path_rate == 0.2
        for part in ('bbox_head', 'roi_head', 'rpn_head', 'neck', 'train_cfg', 'test_cfg'):
            assert cfg.model.get(part) == relative.model.get(part)


def test_every_official_config_has_one_of_ours():
    assert all((ROOT / 'configs' / name).is_file() for name in CONFIGS)
    assert len(FOCALNETS) == 27 and len(OTHERS) == 25


def test_every_config_of_these_methods_is_compared():
    folders = {name.split('/')[0] for name in (*CONFIGS, *RELATED)}
    ours = {
        f'{folder}/{path.name}'
        for folder in folders
        for path in (ROOT / 'configs' / folder).glob('*.py')
    }
    assert ours == {*CONFIGS, *RELATED}
