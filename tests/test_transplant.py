"""Other people's configs with our backbones. docs/detectors.md has the configs and the answers.

``FOCAL_MM_SWEEP=1`` takes a training step of every config of the table that trains, which takes
an hour; otherwise of a few.
"""

import os
import re
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from torch import nn

import focal_mm
from focal_mm import transplant
from focal_mm.backbones.base import StagedBackbone
from focal_mm.config import dicts
from focal_mm.datasets import use_mini
from focal_mm.transplant.tracing import NumbersOnCpu

TRACES = {}
PAGE = Path(__file__).parents[1] / 'docs' / 'detectors.md'
NAME = 'focalnet_tiny_lrf_in1k'
ROWS = dict(re.findall(r'^\| `(\w+::\S+)` \| (.+?) \|$', PAGE.read_text(), re.MULTILINE))
STEPS = [
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py',
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb4-80k_isaid-896x896.py',
    'mmseg::encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_enc_4xb4-80k_ade20k-512x512.py',
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py',
]
if os.environ.get('FOCAL_MM_SWEEP'):
    STEPS = [config for config, answer in ROWS.items() if answer == 'trains']


def stock_too(configs, every):
    """The configs as parameters, of which every so many also run on stock OpenMMLab."""
    return [
        pytest.param(config, marks=pytest.mark.stock if i % every == 0 else ())
        for i, config in enumerate(configs)
    ]


def read(config):
    """Some of the configs are not in their package's list, so that ``::`` does not find them."""
    package, _, path = config.partition('::')
    file = Path(find_spec(package).origin).parent / '.mim' / 'configs' / path
    if not file.is_file():
        pytest.skip(f'this {package} does not have it')
    return Config.fromfile(file)


def use(config, name=NAME):
    return focal_mm.use_backbone(read(config), name)


def build(cfg):
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    with torch.device('meta'), NumbersOnCpu():
        return MODELS.build(deepcopy(cfg.model))


def backbones(model):
    return [module for module in model.modules() if isinstance(module, StagedBackbone)]


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch):
    """Most detectors share a ResNet-50 and an FPN, which need to be traced once."""

    def trace(node, maps=None, previous=None):
        if previous is not None:
            return trace_again(node, maps, previous)
        key = repr(node), tuple(maps or ()), DefaultScope.get_current_instance().scope_name
        if key not in TRACES:
            TRACES[key] = trace_again(node, maps)
        return TRACES[key]

    trace_again = transplant.run_part
    monkeypatch.setattr(transplant, 'run_part', trace)


@pytest.fixture
def lines(monkeypatch):
    """What is printed."""
    printed = []
    monkeypatch.setattr(transplant, 'print_log', printed.append)
    return printed


def test_extra_layers_after_the_maps_of_a_backbone_keep_their_channels():
    model = use('mmdet::ssd/ssd300_coco.py').model
    assert model.neck.out_channels == (192, 384, 512, 256, 256, 256) == model.bbox_head.in_channels


def test_network_around_a_backbone_gets_channels_that_add_up():
    model = use('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py').model
    assert model.backbone.last_in_channels == (768, 384)
    assert model.backbone.ffm_cfg.in_channels == 192 + 128
    assert [head.in_channels for head in model.auxiliary_head] == [128, 128, 192]


def test_cascade_of_heads_reads_maps_of_one_size():
    heads = use('mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py').model.decode_head
    assert [(head.in_index, head.in_channels) for head in heads] == [(0, 768), (0, 768)]


@pytest.mark.parametrize('config', stock_too(ROWS, every=8))
def test_config_has_the_answer_of_the_table(config):
    answer = ROWS[config]
    if answer.startswith('refused: '):
        with pytest.raises(ValueError, match='cannot replace the backbone') as error:
            use(config)
        assert answer.removeprefix('refused: ') == str(error.value).split('.py: ')[-1]
    else:
        cfg = use(config)
        types = [node.get('type') for node in dicts(cfg.model)]
        assert 'FocalNet' in types
        if not answer.startswith('changed'):
            assert backbones(build(cfg))


@pytest.mark.parametrize('config', stock_too(STEPS, every=4))
def test_a_step_trains_every_parameter_of_the_backbone(config):
    """An output norm without a gradient would stop distributed training at its second step."""
    cfg = use(config)
    for node in dicts(cfg.model):
        if node.get('type') == 'FocalNet':
            node.depths = (1, 1, 1, 1)
    cfg = use_mini(cfg)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()  # until then, some parameters are memory that nobody has written
    options = {k: v for k, v in cfg.optim_wrapper.items() if k not in ('loss_scale', 'dtype')}
    wrapper = build_optim_wrapper(model, dict(options, type='OptimWrapper'))
    # YOLOX chooses the size of a batch by the iteration.
    for key, value in dict(iter=0, max_iters=8, epoch=0, max_epochs=2).items():
        MessageHub.get_current_instance().update_info(key, value)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    losses = model.train_step(pseudo_collate([train[0], train[1]]), wrapper)
    assert losses['loss'].isfinite()
    for backbone in backbones(model):
        assert [n for n, p in backbone.named_parameters() if p not in wrapper.optimizer.state] == []


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_table_has_every_folder(package):
    root = Path(find_spec(package).origin).parent / '.mim' / 'configs'
    folders = {path.name for path in root.iterdir() if path.is_dir() and any(path.rglob('*.py'))}
    tested = {c.partition('::')[2].split('/')[0] for c in ROWS if c.startswith(package)}
    # These hold parts of configs, and lists of checkpoints.
    assert folders - tested <= {'_base_', 'common'}


@pytest.mark.stock
def test_map_that_nobody_reads_is_not_made(lines):
    cfg = use('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    model = cfg.model
    assert model.backbone == dict(
        type='FocalNet',
        arch='tiny_lrf',
        focal_windows=9,
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint=f'focal://{NAME}'),
    )
    assert model.neck.in_channels == [192, 384, 768] and model.neck.start_level == 0
    assert 'model.neck.start_level: 1 -> 0' in lines


@pytest.mark.stock
def test_heads_of_segmentors_read_the_stages_in_place_of_dilated_ones(lines):
    model = use('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py').model
    decode, auxiliary = model.decode_head, model.auxiliary_head
    assert model.backbone.out_indices == (0, 2, 3)
    assert (decode.in_channels, decode.in_index, decode.c1_in_channels) == (768, 2, 96)
    assert (auxiliary.in_channels, auxiliary.in_index) == (384, 1)
    assert 'model.backbone: maps of strides 4, 8, 8 become maps of strides 4, 16, 32' in lines


def test_channels_of_a_head_without_convolutions_are_those_of_its_input():
    cfg = read('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    cfg.model.auxiliary_head.update(num_convs=0, channels=1024)
    focal_mm.use_backbone(cfg, NAME)
    assert cfg.model.auxiliary_head.channels == cfg.model.auxiliary_head.in_channels == 384


def test_images_of_six_channels_stay():
    cfg = read('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    cfg.model.backbone.in_channels = 6
    cfg.model.data_preprocessor.update(mean=[1.0] * 6, std=[2.0] * 6)
    focal_mm.use_backbone(cfg, NAME)
    assert (cfg.model.backbone.in_channels, cfg.model.backbone.adapt_in_channels) == (6, True)
    assert cfg.model.data_preprocessor.mean == [1.0] * 6


@pytest.mark.parametrize(
    'config', ['rtmdet/rtmdet_s_8xb32-300e_coco', 'yolox/yolox_s_8xb8-300e_coco']
)
def test_images_are_normalized_as_on_imagenet(config):
    preprocessor = use(f'mmdet::{config}.py').model.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53] and preprocessor.bgr_to_rgb
    assert preprocessor.std == [58.395, 57.12, 57.375]


def test_options_of_the_optimizer_stay():
    cfg = use('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py')
    assert cfg.optim_wrapper.optimizer.lr == 0.004
    assert cfg.optim_wrapper.paramwise_cfg == dict(
        norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True
    )


def test_sgd_gives_way_to_adamw_and_the_end_of_its_schedule_is_scaled():
    cfg = use('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    assert cfg.optim_wrapper.optimizer.type == 'AdamW' and cfg.optim_wrapper.optimizer.lr == 6e-5
    assert cfg.param_scheduler[0].eta_min == pytest.approx(6e-5 * 1e-4 / 0.01)


@pytest.mark.parametrize(
    'config',
    [
        'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
    ],
)
def test_learning_rates_for_the_layers_of_another_net_are_left_out(config):
    wrapper = use(config).optim_wrapper
    assert 'constructor' not in wrapper and wrapper.paramwise_cfg == dict(norm_decay_mult=0.0)


def test_norms_do_not_decay_behind_a_key_of_the_whole_backbone():
    """The keys of Swin's norms go, and the backbone's tenth of the learning rate stays."""
    cfg = use(
        'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py', 'focal_tiny_in1k'
    )
    model = build(cfg)
    wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
    groups = {id(group['params'][0]): group for group in wrapper.optimizer.param_groups}
    for name, module in model.backbone.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            group, is_norm = groups[id(parameter)], isinstance(module, nn.LayerNorm)
            assert group['lr'] == pytest.approx(1e-5), name
            free = is_norm or 'relative_position_bias_table' in f'{name}.{key}'
            assert group['weight_decay'] == (0 if free else 0.05), name
    keys = [key for key in cfg.optim_wrapper.paramwise_cfg.custom_keys if 'stages' in key]
    assert not keys and 'query_embed' in cfg.optim_wrapper.paramwise_cfg.custom_keys


def test_checkpoints_of_the_old_network_are_left_out():
    cfg = read('mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py')
    assert cfg.load_from
    assert focal_mm.use_backbone(cfg, NAME).load_from is None


def test_weights_of_a_detector_are_taken_from_its_backbone():
    cfg = use('mmdet::atss/atss_r50_fpn_1x_coco.py', 'mask_rcnn_focalnet_small_lrf_3x_coco')
    assert cfg.model.backbone.arch == 'small_lrf'
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained',
        checkpoint='focal://mask_rcnn_focalnet_small_lrf_3x_coco',
        prefix='backbone.',
    )


@pytest.mark.parametrize('name, channels', [('focal_base_in1k', 256), ('mixformer_b4_in1k', 128)])
def test_other_families(name, channels):
    cfg = use('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', name)
    assert cfg.model.neck.in_channels == [channels, 2 * channels, 4 * channels]
    assert backbones(build(cfg))


@pytest.mark.parametrize(
    'name, message',
    [
        ('focalnet_tiny_lrf', 'near it: focalnet_tiny_lrf_in1k'),
        ('resnet', '--backbone resnet: no published weights have this name'),
        ('focalnet_base_iso_in1k', 'one map of stride 16'),
    ],
)
def test_name_that_does_not_fit_is_an_error_and_changes_nothing(name, message):
    cfg = read('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    before = deepcopy(cfg._cfg_dict)
    with pytest.raises(ValueError, match=message) as error:
        focal_mm.use_backbone(cfg, name)
    assert '\n' not in str(error.value) and cfg._cfg_dict == before


@pytest.mark.stock
def test_config_with_classes_for_types(tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from mmdet.models import FPN, DetDataPreprocessor, ResNet, RPN, RPNHead\n'
        'from mmengine.config import read_base\n'
        'from torch.optim import SGD\n'
        "default_scope = 'mmdet'\n"
        'model = dict(type=RPN, data_preprocessor=dict(type=DetDataPreprocessor),\n'
        "    backbone=dict(type=ResNet, depth=50, style='caffe'),\n"
        '    neck=dict(type=FPN, in_channels=[256, 512, 1024, 2048], out_channels=256,\n'
        '        num_outs=5),\n'
        '    rpn_head=dict(type=RPNHead, in_channels=256), train_cfg=dict(rpn=None),\n'
        '    test_cfg=dict(rpn=None))\n'
        'optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.01))\n'
    )
    cfg = focal_mm.use_backbone(str(tmp_path / 'mine.py'), NAME)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.custom_imports.imports == ['focal_mm']
    assert backbones(build(again)) and again.model.neck.in_channels == [96, 192, 384, 768]
