"""What is checked of a config: every dataset, whatever wraps it, and each against the others."""

import json
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image

from focal_mm.datasets import check_config

pytestmark = pytest.mark.stock

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]


@DATASETS.register_module(force=True)
class UnknownToUs(CocoDataset):
    def load_data_list(self):
        raise NotImplementedError


@pytest.fixture
def coco(write_coco):
    """Writes a COCO file for each split after a change; returns configs of datasets."""

    def write(change=lambda content: None, kind='CocoDataset', pipeline=PIPELINE, **fields):
        datasets = {}
        for split in ('train', 'val'):
            file, folder, content = write_coco(split)
            if split == 'train':
                change(content)
                file.write_text(json.dumps(content))
            datasets[split] = dict(
                type=kind,
                ann_file=str(file),
                data_prefix=dict(img=f'{folder}/'),
                metainfo=dict(classes=('dog', 'кот')),
                pipeline=pipeline,
                **fields,
            )
        return datasets

    return write


def config(train, val=None, **fields):
    loaders = dict(train_dataloader=dict(dataset=train))
    if val:
        loaders['val_dataloader'] = dict(dataset=val)
    return Config(dict(default_scope='mmdet', model=dict(type='X'), **loaders, **fields))


def unknown_category(content):
    content['annotations'][1]['category_id'] = 99


def test_a_config_of_datasets_alone_is_checked(coco):
    cfg = config(coco(unknown_category)['train'])
    cfg.pop('model')
    assert texts(check_config(cfg)) == ['annotation of an unknown category']


@pytest.mark.parametrize('content', [b'', b'\x1f\x8b', b'{"images": [', b'{"images": []}'])
def test_a_file_that_cannot_be_read_is_one_error(coco, content):
    train = coco()['train']
    Path(train['ann_file']).write_bytes(content)
    (error,) = check_config(config(train)).findings
    assert error.level == 'error' and error.file == train['ann_file']


def test_other_names_of_classes_are_said_first(coco):
    def rename(content):
        for category in content['categories']:
            category['name'] = category['name'].title()

    first, *_ = texts(check_config(config(coco(rename)['train'])))
    assert "did you mean 'Dog'?" in first


def texts(report, level='error'):
    return [finding.fault for finding in report.findings if finding.level == level]


@pytest.mark.parametrize(
    'wrap',
    [
        lambda one: one,
        lambda one: dict(type='RepeatDataset', times=3, dataset=one),
        lambda one: dict(type='ConcatDataset', datasets=[one]),
        lambda one: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=one),
        lambda one: dict(type='MultiImageMixDataset', dataset=one, pipeline=PIPELINE),
        lambda one: dict(
            type='MultiImageMixDataset',
            dataset={key: value for key, value in one.items() if key != 'pipeline'},
            pipeline=PIPELINE,
        ),
        lambda one: dict(
            type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[one])
        ),
    ],
)
def test_datasets_inside_of_others(coco, wrap):
    datasets = coco(unknown_category)
    report = check_config(config(wrap(datasets['train']), datasets['val']))
    assert texts(report) == ['annotation of an unknown category']
    assert len(report.looked_at) == 2


def test_dataset_of_an_unknown_type_is_named_and_passed_over(coco):
    datasets = coco(unknown_category, kind='UnknownToUs')
    report = check_config(config(datasets['train']))
    assert not report.findings and 'UnknownToUs' in report.looked_at[0]
    datasets['train']['type'] = 'NobodyRegisteredThis'
    assert 'not registered' in check_config(config(datasets['train'])).looked_at[0]


def test_dataset_that_is_not_on_a_disk_is_named_and_passed_over(coco):
    train = coco(backend_args=dict(backend='petrel'))['train']
    report = check_config(config(train))
    assert not report.findings and 'not on a local disk' in report.looked_at[0]


def test_masks_are_checked_where_they_are_trained_or_evaluated(coco):
    def without(content):
        content['annotations'][1].pop('segmentation')

    datasets = coco(without)
    assert not check_config(config(datasets['train'])).findings
    masks = [PIPELINE[0], dict(PIPELINE[1], with_mask=True), PIPELINE[2]]
    assert texts(check_config(config(coco(without, pipeline=masks)['train'])))
    swapped = config(datasets['val'], datasets['train'])
    swapped.val_evaluator = dict(
        type='CocoMetric', metric=['bbox', 'segm'], ann_file=datasets['train']['ann_file']
    )
    assert texts(check_config(swapped)) == ['annotation without a mask (segmentation)']


def test_one_file_for_both(coco):
    train = coco(unknown_category)['train']
    report = check_config(config(train, dict(train, test_mode=True)))
    assert 'file that training and validation both read' in texts(report, 'warning')
    assert [finding.count for finding in report.findings if finding.level == 'error'] == [1]


def test_evaluator_of_another_file(coco):
    datasets = coco()
    cfg = config(**datasets)
    cfg.val_evaluator = dict(type='CocoMetric', ann_file=datasets['train']['ann_file'])
    assert texts(check_config(cfg), 'warning') == [
        'val_evaluator reads it, and val_dataloader another file'
    ]


def test_copies_are_called_after_their_part_of_the_data(coco, tmp_path):
    datasets = coco(unknown_category)
    file = tmp_path / 'val.json'
    file.write_text(file.read_text().replace('"bbox": [5', '"bbox": [-500', 1))
    report = check_config(config(**datasets), fix=tmp_path / 'out.json')
    assert [copy.file for copy in report.copies] == [
        str(tmp_path / 'out.json'),
        str(tmp_path / 'out_val.json'),
    ]
    for split, name in (('train', 'out'), ('val', 'out_val')):
        datasets[split]['ann_file'] = str(tmp_path / f'{name}.json')
    assert not texts(check_config(config(**datasets)))
    with pytest.raises(FileExistsError, match='--fix'):
        check_config(config(**datasets), fix=tmp_path / 'out.json')


def test_pascal_voc_lvis_and_keypoints_are_known(coco, tmp_path):
    (tmp_path / 'train.txt').write_text('1\n')
    for folder in ('JPEGImages', 'Annotations'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (60, 40)).save(tmp_path / 'JPEGImages' / '1.jpg')
    (tmp_path / 'Annotations' / '1.xml').write_text(
        '<annotation><object><name>cat</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>5</xmax>'
        '<ymax>20</ymax></bndbox></object></annotation>'
    )
    voc = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='train.txt',
        data_prefix=dict(sub_data_root=f'{tmp_path}/'),
        metainfo=dict(classes=('cat',)),
        pipeline=PIPELINE,
    )
    assert 'bndbox whose maximum is below its minimum' in texts(check_config(config(voc)))
    lvis = coco(kind='LVISV1Dataset')['train']
    del lvis['metainfo']
    assert 'image without a coco_url' in texts(check_config(config(lvis)))
    pose = coco(kind='CocoDataset', pipeline=[dict(type='LoadImage'), dict(type='PackPoseInputs')])
    cfg = config(pose['train'])
    cfg.default_scope = 'mmpose'
    report = check_config(cfg)
    assert 'annotation without keypoints' in texts(report, 'warning') or report.looked_at


def test_folders_of_other_classes_in_validation(tmp_path):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    for name in ('train/cat', 'train/dog', 'val/cat', 'val/cow'):
        (tmp_path / name).mkdir(parents=True)
        Image.new('RGB', (9, 9), (len(name), ord(name[-1]), 0)).save(tmp_path / name / '1.png')
    train, val = (
        dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=split, pipeline=pipeline)
        for split in ('train', 'val')
    )
    cfg = config(train, val)
    cfg.default_scope = 'mmpretrain'
    (text,) = texts(check_config(cfg))
    assert 'label 1 is cow here, and dog there' in text
