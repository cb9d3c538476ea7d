"""Our FocalNet configs beside the authors', field by field.

``official_configs.json`` holds what the files of microsoft/FocalNet set, in the words of mmdet 2
and mmseg 0; here they are put into those of mmdet 3 and mmseg 1. What differs on purpose:

- Batches: 8 GPUs x 2 images for all, where some files have one image a GPU, for 16 GPUs.
- Norms do not decay. The official key for that, ``norm``, misses the norms of heads by their names
  alone, ``bn`` and ``gn``; so it would most of MixFormer's.
- mmdet 3 always suppresses level by level and cuts the proposals once, so that of mmdet 2's
  ``nms_across_levels`` and ``nms_post`` nothing is left.
"""

import json
from copy import deepcopy
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
CONFIGS = list(OFFICIAL['configs'])
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
    method = name.split('/', maxsplit=1)[0]
    return merge(OFFICIAL['methods'][method], OFFICIAL['configs'][name]['settings'])


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
    return node


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
    assert plain(ours(name).model.get(part)) == translated(official(name)['model'].get(part))


@pytest.mark.parametrize('name', CONFIGS)
def test_backbone_is_the_official_one(name):
    cfg, wanted = ours(name), official(name)['model']['backbone']
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        net = MODELS.build(cfg.model.backbone)
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


@pytest.mark.parametrize('name', CONFIGS)
def test_training_images_are_prepared_as_officially(name):
    cfg, steps = ours(name), official(name)['train_pipeline']
    wanted = [step for step in map(translated_step, steps) if step]
    assert (
        plain(
            [
                {key: value for key, value in step.items() if key != 'backend_args'}
                for step in cfg.train_dataloader.dataset.pipeline
            ]
        )
        == wanted
    )
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
    else:
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
    assert wrapper.type == ('AmpOptimWrapper' if hook.get('use_fp16') else 'OptimWrapper')


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_t_' in name or '_t.' in name])
def test_learning_rate_and_decay_of_every_parameter_are_the_official_ones(name):
    cfg = ours(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
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
    assert list(resize.scale) == flip_aug['img_scale'] and resize.keep_ratio


def test_every_official_config_has_one_of_ours():
    assert all((ROOT / 'configs' / name).is_file() for name in CONFIGS) and len(CONFIGS) == 27
