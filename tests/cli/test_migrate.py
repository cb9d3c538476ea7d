"""Old configs become ours: the authors' own, as data of ``official_configs.json``, and invented
ones. No test holds a file of another project."""

import json
import re
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
from mmengine.config import Config

from focal_mm.cli.migrate import migrate
from focal_mm.cli.migrate.checking import Types
from focal_mm.cli.migrate.writing import Writer, literal

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[2]
DATA = json.loads((ROOT / 'tests' / 'data' / 'official_configs.json').read_text())
OFFICIAL = next(source for source in DATA['sources'] if source['source'].endswith('/FocalNet'))
# The bases of the official files that mmdet 2 and mmseg 0 have; they are missing here.
RUNTIME = ['../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
BASES = dict(
    mask_rcnn=['../_base_/datasets/coco_instance.py', *RUNTIME],
    cascade=['../_base_/datasets/coco_instance.py', *RUNTIME],
    atss=['../_base_/datasets/coco_detection.py', *RUNTIME],
    sparse_rcnn=['../_base_/datasets/coco_detection.py', *RUNTIME],
    upernet=[
        '../_base_/datasets/ade20k.py',
        '../_base_/schedules/schedule_160k.py',
        '../_base_/default_runtime.py',
    ],
)
# Fields in which a migrated official file differs from our config, and why.
EXPLAINED = {
    'train_dataloader.batch_size': 'ours is for 8 GPUs, some official files are for 16',
    'optim_wrapper.paramwise_cfg': "norms do not decay; the official key 'norm' misses those of "
    'heads that are called bn or gn, and there is no absolute_pos_embed',
}
DETECTOR = """
    model = dict(
        type='ATSS',
        backbone=dict(type='ResNet', depth=18, style='pytorch'),
        neck=dict(
            type='FPN', in_channels=[64, 128, 256, 512], out_channels=256, start_level=1,
            add_extra_convs='on_output', num_outs=5),
        bbox_head=dict(type='ATSSHead', num_classes=80, in_channels=256),
        test_cfg=dict(nms_pre=1000, nms=dict(type='nms', iou_thr=0.6), max_num=100))
    norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
    train_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', img_scale=[(1333, 640), (1333, 800)], multiscale_mode='range'),
        dict(type='RandomFlip', flip_ratio=0.5),
        dict(type='Normalize', **norm),
        dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
    test_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
            dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
            dict(type='Normalize', **norm), dict(type='Pad', size_divisor=32),
            dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])]
    data_root = 'data/birds/'
    data = dict(
        samples_per_gpu=4, workers_per_gpu=3,
        train=dict(type='CocoDataset', ann_file=data_root + 'train.json',
                   img_prefix=data_root + 'train/', pipeline=train_pipeline),
        val=dict(type='CocoDataset', ann_file=data_root + 'val.json',
                 img_prefix=data_root + 'val/', pipeline=test_pipeline))
    evaluation = dict(interval=2, metric='bbox', save_best='bbox_mAP')
    optimizer = dict(type='SGD', lr=0.01)
    lr_config = dict(policy='CosineAnnealing', min_lr_ratio=0.01, warmup='linear', warmup_iters=99)
    runner = dict(type='EpochBasedRunner', max_epochs=24)
"""
SEGMENTOR = """
    model = dict(
        type='EncoderDecoder', pretrained='open-mmlab://resnet50_v1c',
        backbone=dict(type='ResNetV1c', depth=50, contract_dilation=True),
        decode_head=dict(type='FCNHead', in_channels=2048, channels=512, num_classes=3),
        train_cfg=dict(), test_cfg=dict(mode='slide', crop_size=(256, 256), stride=(170, 170)))
    norm = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=False)
    train_pipeline = [
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
        dict(type='Resize', img_scale=(1024, 256), ratio_range=(0.5, 2.0)),
        dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5), dict(type='Normalize', **norm),
        dict(type='Pad', size=(256, 256), pad_val=0, seg_pad_val=255),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_semantic_seg'])]
    test_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='MultiScaleFlipAug', img_scale=(1024, 256), img_ratios=[0.5, 1.0], flip=True,
             transforms=[dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
                         dict(type='Normalize', **norm), dict(type='ImageToTensor', keys=['img']),
                         dict(type='Collect', keys=['img'])])]
    common = dict(type='CustomDataset', data_root='data/roads', img_suffix='.png',
                  classes=('road', 'crack', 'hole'), palette=[[0, 0, 0], [9, 9, 9], [7, 7, 7]])
    data = dict(
        samples_per_gpu=2, workers_per_gpu=2,
        train=dict(type='RepeatDataset', times=10, dataset=dict(
            img_dir='img/train', ann_dir='ann/train', pipeline=train_pipeline, **common)),
        val=dict(img_dir='img/val', ann_dir='ann/val', pipeline=test_pipeline, **common),
        test=dict(img_dir='img/val', ann_dir='ann/val', pipeline=test_pipeline, **common))
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
    optimizer_config = dict(type='GradientCumulativeFp16OptimizerHook', cumulative_iters=4,
                            loss_scale=512.0)
    lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)
    runner = dict(type='IterBasedRunner', max_iters=20000)
    checkpoint_config = dict(by_epoch=False, interval=2000, max_keep_ckpts=3)
    evaluation = dict(interval=2000, metric=['mIoU', 'mDice'], pre_eval=True)
    log_config = dict(interval=20, hooks=[
        dict(type='TextLoggerHook', by_epoch=False), dict(type='TensorboardLoggerHook')])
    custom_hooks = [dict(type='ExpMomentumEMAHook', momentum=0.0002, total_iter=2000, priority=49)]
    dist_params = dict(backend='nccl')
    workflow = [('train', 1)]
    cudnn_benchmark = True
    load_from = 'start.pth'
    resume_from = None
    seed = 7
"""


@pytest.fixture
def write(tmp_path):
    """Writes a file; returns its path."""

    def to(text, name='old.py'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    return to


@pytest.fixture
def call(command):
    """Runs the command; returns its exit status, and its text on stdout and stderr."""
    return partial(command, 'migrate')


def reload(migration, path):
    path.write_text(migration.text)
    return Config.fromfile(path)


def plain(node):
    """Lists for tuples, and no scopes."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def differing(one, other, path=''):
    """Yields the key of every field in which two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            name = f'{path}.{key}' if path else key
            yield from differing(one.get(key, ...), other.get(key, ...), name)
    elif one != other:
        yield path


def write_official(write, name):
    method = name.split('/', maxsplit=1)[0]
    settings = dict(OFFICIAL['methods'][method])
    batch, steps = settings.pop('samples_per_gpu'), settings.pop('train_pipeline')
    settings.pop('test_pipeline', None)  # that of the base
    data = dict(train=dict(pipeline=steps), **(dict(samples_per_gpu=batch) if batch else {}))
    for key in ('optimizer', 'optimizer_config', *(['lr_config'] if method == 'upernet' else [])):
        settings[key] = dict(settings.get(key, {}), _delete_=True)
    lines = [f'_base_ = {BASES[method]}', f'data = {data}']
    write('\n'.join([*lines, *(f'{k} = {v}' for k, v in settings.items())]), 'focalnet/method.py')
    own = OFFICIAL['configs'][name]['settings']
    lines = ["_base_ = './method.py'", *(f'{key} = {value}' for key, value in own.items())]
    return write('\n'.join(lines), f'focalnet/{name.replace("/", "_")}')


@pytest.mark.parametrize('name', OFFICIAL['configs'])
def test_official_file_becomes_our_config(write, name, tmp_path):
    migration = migrate(write_official(write, name))
    assert migration.bases == [f'focal_mm::{name}'] and not migration.report.unknown
    new = plain(reload(migration, tmp_path / 'new.py')._cfg_dict.to_dict())
    ours = plain(Config.fromfile(ROOT / 'configs' / name)._cfg_dict.to_dict())
    assert {
        key
        for key in differing(new, ours)
        if not any(f'{key}.'.startswith(f'{field}.') for field in EXPLAINED)
    } == set()
    assert 8 * new['train_dataloader']['batch_size'] in (8, 16)
    assert len(migration.text.splitlines()) < 16


def test_all_official_files_are_migrated():
    assert len(OFFICIAL['configs']) == 27


def test_detector(write):
    cfg = migrate(write(DETECTOR)).settings
    assert cfg['default_scope'] == 'mmdet' and cfg['data_root'] == 'data/birds/'
    loader = cfg['train_dataloader']
    assert (loader['batch_size'], loader['num_workers']) == (4, 3)
    assert loader['dataset']['ann_file'] == 'train.json'
    assert loader['dataset']['data_prefix'] == dict(img='train/')
    assert [step['type'] for step in loader['dataset']['pipeline']] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'RandomResize',
        'RandomFlip',
        'PackDetInputs',
    ]
    resize = loader['dataset']['pipeline'][2]
    assert resize['scale'] == [(1333, 640), (1333, 800)] and resize['keep_ratio']
    assert [step['type'] for step in cfg['val_dataloader']['dataset']['pipeline']] == [
        'LoadImageFromFile',
        'Resize',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert cfg['test_dataloader'] == cfg['val_dataloader']
    assert cfg['val_evaluator'] == dict(
        type='CocoMetric', ann_file='data/birds/val.json', metric='bbox'
    )
    prepared = cfg['model']['data_preprocessor']
    assert prepared['bgr_to_rgb'] and prepared['pad_size_divisor'] == 32
    assert cfg['model']['test_cfg'] == dict(
        nms_pre=1000, nms=dict(type='nms', iou_threshold=0.6), max_per_img=100
    )
    warm_up, cosine = cfg['param_scheduler']
    assert (warm_up['type'], warm_up['end'], warm_up['start_factor']) == ('LinearLR', 99, 0.1)
    assert (cosine['type'], cosine['T_max'], cosine['eta_min_ratio']) == (
        'CosineAnnealingLR',
        24,
        0.01,
    )
    assert cfg['train_cfg'] == dict(type='EpochBasedTrainLoop', max_epochs=24, val_interval=2)
    assert cfg['default_hooks']['checkpoint']['save_best'] == 'coco/bbox_mAP'


def test_segmentor(write):
    migration = migrate(write(SEGMENTOR))
    cfg = migration.settings
    assert cfg['default_scope'] == 'mmseg' and not migration.report.unknown
    repeated = cfg['train_dataloader']['dataset']
    assert (repeated['type'], repeated['times']) == ('RepeatDataset', 10)
    dataset = repeated['dataset']
    assert dataset['type'] == 'BaseSegDataset' and dataset['img_suffix'] == '.png'
    assert dataset['data_prefix'] == dict(img_path='img/train', seg_map_path='ann/train')
    assert dataset['metainfo']['classes'] == ('road', 'crack', 'hole')
    assert len(dataset['metainfo']['palette']) == 3
    assert cfg['train_dataloader']['sampler']['type'] == 'InfiniteSampler'
    prepared = cfg['model']['data_preprocessor']
    assert (prepared['size'], prepared['bgr_to_rgb']) == ((256, 256), False)
    assert cfg['model']['backbone']['init_cfg']['checkpoint'] == 'open-mmlab://resnet50_v1c'
    wrapper = cfg['optim_wrapper']
    assert (wrapper['type'], wrapper['loss_scale']) == ('AmpOptimWrapper', 512.0)
    assert wrapper['accumulative_counts'] == 4
    assert cfg['param_scheduler'] == [
        dict(type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=20000)
    ]
    assert cfg['val_evaluator']['iou_metrics'] == ['mIoU', 'mDice']
    assert cfg['default_hooks']['checkpoint']['max_keep_ckpts'] == 3
    assert [backend['type'] for backend in cfg['vis_backends']] == [
        'LocalVisBackend',
        'TensorboardVisBackend',
    ]
    (average,) = cfg['custom_hooks']
    assert (average['type'], average['ema_type'], average['gamma']) == (
        'EMAHook',
        'ExpMomentumEMA',
        2000,
    )
    assert (cfg['load_from'], cfg['resume'], cfg['randomness']) == ('start.pth', False, {'seed': 7})
    assert cfg['env_cfg']['cudnn_benchmark']


def test_scales_and_flips_of_testing_become_tta(write):
    migration = migrate(write(SEGMENTOR))
    steps = migration.settings['test_dataloader']['dataset']['pipeline']
    assert next(s for s in steps if s['type'] == 'Resize')['scale'] == (1024, 256)
    resizes, flips, *_ = migration.settings['tta_pipeline'][-1]['transforms']
    assert [resize['scale'] for resize in resizes] == [(512, 128), (1024, 256)]
    assert [flip['prob'] for flip in flips] == [1.0, 0.0]
    assert any('--tta' in change for change in migration.report.changes)


@pytest.mark.parametrize('text', [DETECTOR, SEGMENTOR], ids=['detector', 'segmentor'])
def test_text_holds_all_settings(write, text, tmp_path):
    migration = migrate(write(text))
    new = reload(migration, tmp_path / 'new.py')._cfg_dict.to_dict()
    library = migration.settings['default_scope']
    writer = Writer(library, Types(library))
    assert migration.bases
    for key, value in migration.settings.items():
        assert writer.same(value, new[key], key), key


@pytest.mark.parametrize(
    'line, wanted',
    [
        ("fp16 = dict(loss_scale='dynamic')", 'AmpOptimWrapper'),
        ('fp16 = dict(loss_scale=dict(init_scale=512.0, mode="dynamic"))', 'AmpOptimWrapper'),
        ("optimizer_config = dict(type='DistOptimizerHook', use_fp16=True)", 'AmpOptimWrapper'),
        ("optimizer_config = dict(type='DistOptimizerHook', use_fp16=False)", 'OptimWrapper'),
        ("runner = dict(type='EpochBasedRunnerAmp', max_epochs=24)", 'OptimWrapper'),
    ],
)
def test_half_precision(write, line, wanted):
    migration = migrate(write(f'{DETECTOR}\n    {line}\n'))
    assert migration.settings['optim_wrapper']['type'] == wanted
    assert not migration.report.unknown


def test_number_of_classes_follows_their_names(write):
    text = DETECTOR.replace("type='CocoDataset',", "type='CocoDataset', classes=('owl', 'kite'),")
    migration = migrate(write(text))
    assert migration.settings['model']['bbox_head']['num_classes'] == 2
    assert any('80 becomes 2' in change for change in migration.report.changes)


def test_number_of_classes_without_names_is_reported(write):
    migration = migrate(write(DETECTOR.replace('num_classes=80', 'num_classes=3')))
    assert migration.settings['model']['bbox_head']['num_classes'] == 3
    ((key, _),) = migration.report.unknown
    assert key == 'data.train.classes'


def test_dataset_of_the_old_project_is_read_and_not_run(write, tmp_path):
    write(
        """
        from .coco import CocoDataset
        open('ran', 'w')

        class BirdDataset(CocoDataset):
            CLASSES = ('owl', 'kite', 'crane')
        """,
        'project/mmdet/datasets/birds.py',
    )
    write(
        "class CocoDataset:\n    CLASSES = ('person',)\n    def load(self): pass\n",
        'project/mmdet/datasets/coco.py',
    )
    old = write(
        DETECTOR.replace("type='CocoDataset'", "type='BirdDataset'"), 'project/configs/x/a.py'
    )
    migration = migrate(old)
    dataset = migration.settings['train_dataloader']['dataset']
    assert dataset['type'] == 'CocoDataset'
    assert dataset['metainfo'] == dict(classes=('owl', 'kite', 'crane'))
    assert migration.settings['model']['bbox_head']['num_classes'] == 3
    assert not migration.report.unknown and not list(tmp_path.rglob('ran'))


def test_unknown_dataset_is_reported(write):
    migration = migrate(write(DETECTOR.replace("type='CocoDataset'", "type='BirdDataset'")))
    assert ('data.train.type', 'BirdDataset') in migration.report.unknown


def test_mask_head_without_masks_is_left_out(write):
    old = write(
        """
        _base_ = ['../_base_/models/mask_rcnn_r50_fpn.py', '../_base_/datasets/coco_detection.py',
                  '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py']
        """
    )
    migration = migrate(old)
    assert 'mask_head' not in migration.settings['model']['roi_head']
    assert any('mask_head' in change for change in migration.report.changes)


UNKNOWN = {
    'model.bbox_head.wings': ('num_classes=80,', 'num_classes=80, wings=2,'),
    'model.neck.type': ("type='FPN'", "type='MyNeck'"),
    'data.train.beaks': ('img_prefix=data_root', 'beaks=3, img_prefix=data_root'),
    'data.feathers': ('workers_per_gpu=3', 'workers_per_gpu=3, feathers=4'),
    'data.train.pipeline[2].claws': ("multiscale_mode='range'", "multiscale_mode='range', claws=5"),
    'evaluation.nests': ('interval=2', 'interval=2, nests=6'),
    'lr_config.eggs': ('warmup_iters=99', 'warmup_iters=99, eggs=7'),
    'lr_config.policy': ('CosineAnnealing', 'cyclic'),
    'optimizer_config.tails': ('optimizer =', 'optimizer_config = dict(tails=8)\n    optimizer ='),
    'optim_wrapper.optimizer.songs': ('lr=0.01)', 'lr=0.01, songs=9)'),
    'runner.trees': ('max_epochs=24', 'max_epochs=24, trees=10'),
    'migration_route': ('evaluation =', "migration_route = 'south'\n    evaluation ="),
    'workflow': ('evaluation =', "workflow = [('train', 1), ('val', 1)]\n    evaluation ="),
}


@pytest.mark.parametrize('key', UNKNOWN)
def test_unknown_setting_is_listed(write, key):
    old, new = UNKNOWN[key]
    assert old in DETECTOR
    migration = migrate(write(DETECTOR.replace(old, new)))
    assert key in dict(migration.report.unknown)
    assert f'#   {key} = ' in migration.text


def test_bases_and_variables(write):
    write(DETECTOR, 'bases/detector.py')
    old = write(
        """
        import os.path as osp
        _base_ = ['../bases/detector.py']
        root = osp.join('data', 'more')
        steps = {{_base_.train_pipeline}}
        for i, step in enumerate(steps):
            if step['type'] == 'RandomFlip':
                steps[i] = dict(step, flip_ratio=0.25)
        data = dict(
            samples_per_gpu=_base_.data.samples_per_gpu * 2,
            train=dict(ann_file=f'{root}/train.json', img_prefix=f'{root}/img', pipeline=steps))
        runner = dict(max_epochs=sum(n for n in range(4)))
        """,
        'own/old.py',
    )
    migration = migrate(old)
    loader = migration.settings['train_dataloader']
    assert loader['batch_size'] == 8 and migration.settings['train_cfg']['max_epochs'] == 6
    assert loader['dataset']['ann_file'] == 'data/more/train.json'
    assert loader['dataset']['pipeline'][3]['prob'] == 0.25
    assert not migration.report.unknown


@pytest.mark.parametrize(
    'line',
    [
        'import subprocess; subprocess.run(["touch", "ran"])',
        'from os import system; system("touch ran")',
        'import os; os.system("touch ran")',
        'open("ran", "w")',
        '__import__("os").system("touch ran")',
        'x = [].__class__',
        'x = (lambda: 1)()',
        'def f(): pass',
        'x = undefined + 1',
    ],
)
def test_file_that_needs_to_run_is_refused(write, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'old\.py, line \d+: .*work folder'):
        migrate(write(f'{DETECTOR}\n    {line}\n'))
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'text, message',
    [
        ('model = dict(', 'not Python'),
        ('x = 1', 'no model'),
        ("model = dict(type='ImageClassifier', backbone=dict(type='ResNet'))", 'only detectors'),
        ("model = dict(type='X', backbone=dict())\noptim_wrapper = dict()", 'needs no migration'),
        ("_base_ = '../_base_/models/mask_rcnn_r51_fpn.py'", 'models/mask_rcnn_r50_fpn'),
        ("_base_ = './old.py'", 'base of itself'),
        (DETECTOR.replace('runner =', 'walker ='), 'max_epochs'),
        (DETECTOR.replace("type='CocoDataset', ", ''), 'without a type'),
        (DETECTOR.replace('CosineAnnealing', 'step'), 'lr_config.step'),
        (DETECTOR.replace('img_scale=(1333, 800), flip', 'img_scale=800, flip'), 'could not read'),
    ],
)
def test_wrong_file_is_one_line(write, call, text, message):
    status, out, err = call(write(text))
    line = err.splitlines()[-1]
    assert (status, out) == (2, '')
    assert line.startswith('focal-mm migrate: error: ') and message in line


def test_weights_of_the_command_line(write):
    path = write_official(write, 'mask_rcnn/focalnet_s_srf_1x.py')
    init_cfg = migrate(path, {'model.pretrained': 'pretrained/focalnet_small_srf.pth'}).settings[
        'model'
    ]['backbone']['init_cfg']
    assert init_cfg['checkpoint'] == 'focal://focalnet_small_srf_in1k'
    own = migrate(path, {'model.pretrained': 'mine/best.pth'}).settings['model']['backbone']
    assert own['init_cfg']['checkpoint'] == 'mine/best.pth'


def test_backbone_of_the_swin_repository(write):
    swin = "type='SwinTransformer', embed_dim=96, ape=False, use_checkpoint=True"
    old = write(DETECTOR.replace("type='ResNet', depth=18, style='pytorch'", swin))
    migration = migrate(old, {'model.pretrained': 'swin_tiny.pth'})
    backbone = migration.settings['model']['backbone']
    assert backbone['embed_dims'] == 96 and backbone['with_cp']
    assert backbone['convert_weights'] and not migration.report.unknown


def test_sizes_of_no_arch_stay(write):
    sizes = "type='FocalNet', embed_dim=32, depths=[1, 1, 2, 1], focal_levels=[2, 2, 3, 3]"
    old = write(DETECTOR.replace("type='ResNet', depth=18, style='pytorch'", sizes))
    backbone = migrate(old).settings['model']['backbone']
    assert backbone['arch'] is None and backbone['embed_dims'] == 32
    assert backbone['focal_levels'] == (2, 2, 3, 3) and backbone['drop_path_rate'] == 0.2


def test_command_writes_a_file_once(write, call, tmp_path):
    old, new = write(DETECTOR), tmp_path / 'deep' / 'new config.py'
    status, out, _ = call(old, new)
    assert status == 0 and f'focal-mm train {new}' in out
    assert Config.fromfile(new).model.type == 'ATSS'
    status, _, err = call(old, new)
    assert status == 2 and 'exists' in err.splitlines()[-1]


def test_command_prints_the_config(write, call, tmp_path):
    status, out, err = call(write(DETECTOR))
    assert status == 0 and 'old.py -> stdout' in err
    (tmp_path / 'printed.py').write_text(out)
    assert Config.fromfile(tmp_path / 'printed.py').model.type == 'ATSS'


def test_command_lists_what_it_did_not_understand(write, call):
    text = DETECTOR.replace(*UNKNOWN['data.feathers'])
    status, out, err = call(write(text))
    assert status == 1 and 'not understood: data.feathers = 4' in err
    status, out, _ = call(write(text), '--json')
    found = json.loads(out)
    assert status == 1 and found['not_understood'] == [dict(key='data.feathers', value=4)]
    assert re.search(r'^model = dict\(', found['config'], re.MULTILINE)


def test_missing_file_is_one_line(call, tmp_path):
    status, _, err = call(tmp_path / 'none.py')
    assert status == 2 and 'no such config' in err.splitlines()[-1]


@pytest.mark.parametrize(
    'value',
    [
        dict(a=[1, (2,), {}], b='x' * 50, c=dict(d=None, e=1e-6, f=(1, 2))),
        {'class': 1, 'two words': [True] * 40, 3: 4},
        [[(480, 1333)] * 11, 'it\'s "quoted"', ()],
    ],
)
def test_literal_is_python_of_the_same_value(value):
    text = literal(value)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= 100
