"""Configs for one's own data: each is read again, and compared with what was meant."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from focal_mm.cli import new
from focal_mm.config import datasets_of, dicts
from focal_mm.datasets import custom, require_classes

pytestmark = pytest.mark.stock

DETECTORS = [
    'mask_rcnn/focalnet_t_1x',
    'sparse_rcnn/focalnet_t_3x.py',
    'focal_mm::dino/focalnet_l_4scale_12e.py',
    'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco',
]
SEGMENTORS = [
    'upernet/focalnet_t',
    'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@pytest.fixture
def call(command):
    """Runs the command; returns its exit status, its text and its lines on stderr."""

    def run(*args):
        status, out, err = command('new', *args)
        return status, out, err.splitlines()

    return run


@pytest.fixture
def boxes(write_coco):
    splits = {split: list(write_coco(split)[:2]) for split in ('train', 'val')}
    return custom.read_boxes(splits, Path('out'))


def plain(node):
    """A config without the scopes that mmengine notes in what is inherited from a package."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(plain(one) for one in node)
    return node


def write_and_read(tmp_path, base_name, base, cfg, plan, classes):
    path = tmp_path / 'own.py'
    new.write(path, base_name, base, cfg, plan, classes)
    read = Config.fromfile(str(path))
    extra = {'classes', 'metainfo', 'num_classes'}
    assert plain({k: v for k, v in read._cfg_dict.items() if k not in extra}) == plain(
        {k: v for k, v in cfg._cfg_dict.items() if k not in extra}
    )
    return read, path.read_text()


@pytest.mark.parametrize('name', DETECTORS)
def test_detector_has_the_classes_and_files_of_the_data(tmp_path, boxes, name):
    classes = custom.common_classes(boxes, None)
    base_name, base = new.read_base(name, tmp_path)
    cfg, plan = new.fit(base, boxes['train'], boxes['val'], classes)
    read, text = write_and_read(tmp_path, base_name, base, cfg, plan, classes)
    require_classes(read, *LOADERS)
    assert len(text.splitlines()) < 110
    for key in LOADERS:
        for dataset in datasets_of(read[key]):
            assert dataset.metainfo.classes == classes
            split = 'train' if key == 'train_dataloader' else 'val'
            root = Path(dataset.data_root)
            assert root / dataset.ann_file == boxes[split].file
            assert root / dataset.data_prefix.img == boxes[split].images
    assert read.val_evaluator.ann_file == str(boxes['val'].file)
    assert [node.type for node in dicts(read.custom_hooks) if 'type' in node].count('EMAHook') == 1
    loop = read.train_cfg
    assert loop.get('max_iters') == plan.iterations or loop.type == 'EpochBasedTrainLoop'
    assert max(node.get('end', 0) for node in dicts(read.param_scheduler)) == plan.iterations


@pytest.mark.parametrize('name', SEGMENTORS)
@pytest.mark.parametrize('zero', [False, True])
def test_segmentor_has_the_classes_and_folders_of_the_data(tmp_path, write_maps, name, zero):
    maps = {s: custom.read_label_maps(s, list(write_maps(s))) for s in ('train', 'val')}
    classes, _ = custom.name_labels(maps, ['a', 'b'] if zero else None)
    base_name, base = new.read_base(name, tmp_path)
    cfg, plan = new.fit(base, maps['train'], maps['val'], classes, reduce_zero_label=zero)
    read, _ = write_and_read(tmp_path, base_name, base, cfg, plan, classes)
    require_classes(read, *LOADERS)
    for key in LOADERS:
        (dataset,) = datasets_of(read[key])
        split = 'train' if key == 'train_dataloader' else 'val'
        assert Path(dataset.data_root, dataset.data_prefix.img_path) == maps[split].images
        assert Path(dataset.data_root, dataset.data_prefix.seg_map_path) == maps[split].maps
        assert dataset.reduce_zero_label == zero
        loads = [step for step in dataset.pipeline if step.type == 'LoadAnnotations']
        assert all(step.get('reduce_zero_label', zero) == zero for step in loads)
    assert read.default_hooks.checkpoint.save_best == 'mIoU'


def test_learning_rate_and_length_follow_batch_and_pictures(tmp_path, boxes):
    _, base = new.read_base('mask_rcnn/focalnet_t_1x', tmp_path)
    train, val = boxes.values()
    cfg, plan = new.fit(base, train, val, train.classes, batch_size=4, gpus=4)
    assert (plan.batch, cfg.optim_wrapper.optimizer.lr) == (16, 1e-4)
    cfg, plan = new.fit(base, train, val, train.classes, batch_size=1)
    assert cfg.optim_wrapper.optimizer.lr == 2.5e-5  # a quarter of 1e-4, for a 16th of the batch
    assert cfg.auto_scale_lr.base_batch_size == 1
    assert plan.epochs == 300 and plan.iterations == 1200
    cfg, plan = new.fit(base, train, val, train.classes, iterations=70)
    assert cfg.train_cfg.max_iters == 70 and cfg.param_scheduler[0].end == 7
    train.content['images'] *= 1182873 // 40  # as many as COCO has
    assert new.fit(base, train, val, train.classes)[1].epochs == pytest.approx(12, abs=0.3)
    _, sgd = new.read_base('mmdet::retinanet/retinanet_r50_fpn_1x_coco', tmp_path)
    cfg, _ = new.fit(sgd, train, val, train.classes, batch_size=8)
    assert cfg.optim_wrapper.optimizer.lr == 0.005


def test_many_classes_get_colors(tmp_path, write_coco):
    names = [f'class {i}' for i in range(81)]
    paths = list(write_coco(classes=names, ids=range(81))[:2])
    boxes = custom.read_boxes(dict(train=paths, val=paths), tmp_path / 'out')
    name, base = new.read_base('mask_rcnn/focalnet_t_1x', tmp_path)
    cfg, plan = new.fit(base, *boxes.values(), boxes['train'].classes)
    read, _ = write_and_read(tmp_path, name, base, cfg, plan, boxes['train'].classes)
    assert read.train_dataloader.dataset.metainfo.palette == 'random'


@pytest.mark.parametrize(
    'name, message',
    [
        ('imagenet/focalnet_t', 'of mmdet or mmseg is needed'),
        ('upernet/focalnet_t', 'of mmseg, which needs label maps'),
        ('mask2former/focalnet_l_panoptic', 'things and stuff'),
        ('htc/focal_l_3x', 'maps of stuff'),
        ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365', 'by words'),
        (
            'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
            'several',
        ),
    ],
)
def test_base_that_does_not_fit_is_refused(tmp_path, boxes, name, message):
    _, base = new.read_base(name, tmp_path)
    with pytest.raises(ValueError, match=message):
        new.fit(base, *boxes.values(), ('dog', 'кот'))


def test_boxes_alone_are_not_enough_for_masks(tmp_path, boxes):
    for one in boxes['train'].content['annotations']:
        one['segmentation'] = []
    _, base = new.read_base('mask_rcnn/focalnet_t_1x', tmp_path)
    with pytest.raises(ValueError, match=r'train.json has none .*--base atss/focalnet_t_3x'):
        new.fit(base, *boxes.values(), ('dog', 'кот'))


@pytest.mark.parametrize(
    'name, hint',
    [
        ('mask_rcnn/focalnet_t_2x', 'near it: .*mask_rcnn/focalnet_t_1x.py'),
        ('mmdet::retinanet/no_such', 'no_such'),
        ('nopackage::a/b', 'nopackage'),
    ],
)
def test_base_that_is_not_there_is_named(tmp_path, name, hint):
    with pytest.raises(FileNotFoundError, match=hint):
        new.read_base(name, tmp_path)


def test_published_weights_of_whole_models():
    assert new.published_weights('focal_mm::mask_rcnn/focalnet_t_1x.py') is None
    address = new.published_weights('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert address.startswith('https://') and address.endswith('.pth')
    assert new.published_weights('focal_mm::dino/focalnet_l_fl4_5scale_12e.py').startswith('focal:')


def test_command_writes_config_and_summary(call, write_coco, tmp_path):
    train, folder, _ = write_coco()
    val, _, _ = write_coco('val')
    path = tmp_path / 'дороги v1.2'
    args = (path, '--base', 'mask_rcnn/focalnet_t_1x')
    status, out, _ = call(*args, '--train', train, folder, '--val', val, folder)
    file = tmp_path / 'дороги v1.2.py'
    assert status == 0 and file.is_file()
    assert 'кот' in out and '60x40' in out and f"focal-mm train '{file}'" in out
    status, _, (line,) = call(*args, '--train', train, folder, '--val', val, folder)
    assert status == 2 and f'{file} exists' in line
    content = train.read_text().replace('"bbox": [5, 5, 20, 10]', '"bbox": [99, 5, 20, 10]')
    train.write_text(content)
    status, out, _ = call(tmp_path / 'b', *args[1:], '--train', train, folder, '--val', val, folder)
    assert status == 1 and 'error: ' in out and 'bbox outside the picture' in out
    assert (tmp_path / 'b.py').is_file()


def test_command_takes_label_maps_and_names_in_a_file(call, write_maps, tmp_path):
    train, val = write_maps(), write_maps('val')
    (tmp_path / 'names.txt').write_text('sky\nлиф\nwater\n')
    options = '--base', 'upernet/focalnet_t', '--classes', tmp_path / 'names.txt', '--gpus', 8
    status, out, _ = call(tmp_path / 'a.py', *options, '--train', *train, '--val', *val)
    assert status == 0 and 'лиф' in out
    assert 'torchrun --nproc_per_node=8 -m focal_mm train' in out
    assert Config.fromfile(str(tmp_path / 'a.py')).classes == ('sky', 'лиф', 'water')


def test_mistakes_are_one_line(call, write_coco, tmp_path):
    train, folder, _ = write_coco()
    good = ['--train', train, folder, '--val', train, folder]
    base = ['--base', 'mask_rcnn/focalnet_t_1x']
    for args in (
        [tmp_path / 'a', '--base', 'mask_rcnn/focalnet_t_9x', *good],
        [tmp_path / 'a', *base, '--train', tmp_path / 'no.json', '--val', train],
        [tmp_path / 'a', *base, *good, '--classes', 'ufo'],
        [tmp_path / 'a', *base, *good, '--batch-size', '0'],
        [train / 'a', *base, *good],
    ):
        status, _, (line,) = call(*args)
        assert status == 2 and line.startswith('focal-mm new: error: ')
    assert not list(tmp_path.glob('*.py'))


def test_openmmlab_reads_the_config_without_our_import(tmp_path, boxes):
    classes = ('dog', 'кот')
    base_name, base = new.read_base('mask_rcnn/focalnet_t_1x', tmp_path)
    cfg, plan = new.fit(base, *boxes.values(), classes)
    new.write(tmp_path / 'own.py', base_name, base, cfg, plan, classes)
    code = (
        'import sys\n'
        'from mmengine.config import Config\n'
        'print(Config.fromfile(sys.argv[1]).model.backbone.type)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'own.py')],
        env={'PYTHONPATH': str(Path(__file__).parents[2])},
        text=True,
        capture_output=True,
    )
    assert done.stdout.strip() == 'FocalNet', done.stderr
