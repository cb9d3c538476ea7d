import json
import re

import pytest
from mmengine.config import Config

from focal_mm.datasets import require_classes, use_mini
from focal_mm.datasets.classes import read_categories

pytestmark = pytest.mark.stock

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'


def own_data(files, classes=None, heads=None):
    """A config that trains on COCO files."""
    cfg = Config.fromfile(CONFIG)
    for key, file in zip(LOADERS, files):
        cfg[key].dataset.update(ann_file=str(file))
        if classes is not None:
            cfg[key].dataset.metainfo = dict(classes=classes)
    if heads is not None:
        cfg.model.roi_head.bbox_head.num_classes = heads
        cfg.model.roi_head.mask_head.num_classes = heads
    return cfg


def test_own_classes_that_fit(write_coco):
    files = [write_coco(split)[0] for split in ('train', 'val')]
    require_classes(own_data(files, ('dog', 'кот'), 2), *LOADERS[:2])
    require_classes(own_data(files, ('кот',), 1), *LOADERS[:2])  # a part of them


@pytest.mark.parametrize(
    'classes, heads, message',
    [
        (None, None, "has the category 'кот', which is not among the 80 classes of CocoDataset"),
        (('dog', 'кот'), 80, 'model.roi_head.bbox_head.num_classes is 80.*2 classes'),
        (('dog', 'кот'), 1, 'bbox_head.num_classes is 1'),
        (('Dog', 'кот'), 2, "no category 'Dog' of metainfo.classes; did you mean 'dog'?"),
        ('dog', 1, "classes = \\('dog',\\)"),
    ],
)
def test_classes_that_do_not_fit_are_one_line(write_coco, classes, heads, message):
    file, _, _ = write_coco()
    with pytest.raises(ValueError, match=message) as error:
        require_classes(own_data([file], classes, heads), 'train_dataloader')
    assert '\n' not in str(error.value)


def test_order_of_categories_is_the_order_of_labels(write_coco):
    train, val = (write_coco(split)[0] for split in ('train', 'val'))
    content = json.loads(val.read_text())
    content['categories'].reverse()
    val.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="label 0 is 'dog' in one and 'кот' in the other"):
        require_classes(own_data([train, val], ('dog', 'кот'), 2), *LOADERS[:2])


def test_some_of_cocos_categories_are_no_mistake(write_coco):
    file, _, _ = write_coco(classes=('dog', 'cat'))
    require_classes(own_data([file]), 'train_dataloader')


@pytest.mark.parametrize(
    'name',
    [
        CONFIG,
        'focal_mm::mask2former/focalnet_l_panoptic.py',
        'focal_mm::htc/focal_l_3x.py',
        'focal_mm::imagenet/focalnet_t.py',
        'focal_mm::keypoint/mixformer_b4_256x192.py',
        'focal_mm::upernet/focalnet_t.py',
        'mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py',
        'mmdet::openimages/retinanet_r50_fpn_32xb2-1x_openimages.py',
        'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py',
        'mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py',
        'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
        'mmpretrain::efficientnet_v2/efficientnetv2-s_8xb32_in21k.py',
    ],
)
def test_configs_of_the_libraries_raise_no_alarm(name):
    require_classes(Config.fromfile(name), *LOADERS)


@pytest.mark.parametrize('name', [CONFIG, 'focal_mm::upernet/focalnet_t.py'])
def test_mini_raises_no_alarm(name):
    require_classes(use_mini(Config.fromfile(name)), *LOADERS)


def test_segmentor_and_classifier(tmp_path):
    cfg = Config.fromfile('focal_mm::upernet/focalnet_t.py')
    cfg.model.decode_head.num_classes = 4
    with pytest.raises(ValueError, match='decode_head.num_classes is 4, and ADE20KDataset'):
        require_classes(cfg, 'train_dataloader')
    cfg = Config.fromfile('focal_mm::imagenet/focalnet_t.py')
    for name in 'abc':
        (tmp_path / 'train' / name).mkdir(parents=True)
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path), data_prefix='train', pipeline=[]
    )
    with pytest.raises(ValueError, match='head.num_classes is 1000, and .*train.* 3 classes'):
        require_classes(cfg, 'train_dataloader')


@pytest.mark.parametrize('order', [('categories', 'images'), ('images', 'categories')])
def test_categories_are_read_without_the_rest(tmp_path, order):
    content = dict(images=['x' * 99] * 9999, categories=[dict(id=3, name='é "x"')] * 2)
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({key: content[key] for key in order}, ensure_ascii=False))
    assert read_categories(path) == content['categories']


@pytest.mark.parametrize('text', ['', '{}', '[1', '{"categories": [1]}', '{"categories": [{}]}'])
def test_file_without_categories_is_named(tmp_path, text):
    path = tmp_path / 'a.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f'{path} has no "categories"')):
        read_categories(path)
