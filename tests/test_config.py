import pytest
from mmengine import hub
from mmengine.config import Config

from focal_mm.config import dicts, library, move_data_root

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
ADE20K = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


def test_dicts_inherited_from_us_get_no_scope_of_their_own(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        "_base_ = 'focal_mm::mask_rcnn/focalnet_t_1x.py'\nmine = _base_.optim_wrapper\n"
    )
    assert '_scope_' not in Config.fromfile(file).mine


def test_unknown_config_names_the_near_ones():
    with pytest.raises(FileNotFoundError, match='near it: mask_rcnn/focalnet_t_1x.py'):
        Config.fromfile('focal_mm::mask_rcnn/focalnet_t1x.py')


def test_no_trained_model_is_promised():
    with pytest.raises(ValueError, match='publishes no trained models'):
        hub.get_config('focal_mm::mask_rcnn/focalnet_t_1x.py', pretrained=True)


@pytest.mark.parametrize(
    'name', ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmseg::_base_/models/upernet_swin.py']
)
def test_names_of_other_packages_are_read_too(name):
    assert Config.fromfile(name).model.type in ('MaskRCNN', 'EncoderDecoder')


def test_shared_dicts_are_walked_once():
    shared = dict(type='A')
    assert [node.get('type') for node in dicts([dict(type='B', part=shared), (shared, 1)])] == [
        'B',
        'A',
    ]


@pytest.mark.parametrize(
    'name, expected',
    [(CONFIG, 'mmdet'), (ADE20K, 'mmseg'), ('focal_mm::imagenet/focalnet_t.py', 'mmpretrain')],
)
def test_library_is_the_one_that_images_are_packed_for(name, expected):
    assert library(Config.fromfile(name)) == expected


def test_data_root_moves_every_dataset_and_annotation():
    cfg = Config.fromfile(CONFIG)
    move_data_root(cfg, '/photos/coco/')
    datasets = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    assert {dataset.data_root for dataset in datasets} == {'/photos/coco/'}
    assert cfg.test_evaluator.ann_file == '/photos/coco/annotations/instances_val2017.json'
    assert 'data/coco/' not in cfg.pretty_text


def test_data_root_does_not_move_folders_whose_names_only_start_with_it():
    cfg = Config(dict(data_root='data/coco', maps='data/coco_stuff', photos='data/coco/x'))
    move_data_root(cfg, '/photos')
    assert (cfg.maps, cfg.photos) == ('data/coco_stuff', '/photos/x')


def test_config_without_data_root_stays():
    cfg = Config(dict(path='data/coco'))
    move_data_root(cfg, '/photos')
    assert cfg.path == 'data/coco'


def test_data_root_moves_lists_and_paths_in_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    cfg = Config(
        dict(data_root='~/coco', files=['~/coco/a.json', '/home/me/coco/b.json', 'c'], x=[['d']])
    )
    move_data_root(cfg, '/photos')
    assert cfg.files == ['/photos/a.json', '/photos/b.json', 'c'] and cfg.x == [['d']]
