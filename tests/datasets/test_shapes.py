import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from focal_mm.compat.panopticapi import rgb2id
from focal_mm.datasets import mini_ade20k, mini_coco, shapes

pytestmark = pytest.mark.stock


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    return mini_coco(tmp_path_factory.mktemp('coco') / 'mini')


@pytest.fixture(scope='module')
def ade_root(tmp_path_factory):
    return mini_ade20k(tmp_path_factory.mktemp('ade') / 'mini')


@pytest.fixture(scope='module', params=['train', 'val'])
def coco(request, coco_root):
    return COCO(coco_root / 'annotations' / f'instances_{request.param}2017.json')


def digest(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob('*'))
        if file.is_file()
    }


@pytest.mark.onedl
@pytest.mark.parametrize('make', [mini_coco, mini_ade20k])
def test_equal_seeds_give_equal_files_and_other_seeds_others(make, tmp_path):
    first, again, other = (
        digest(make(tmp_path / name, seed))
        for name, seed in (('first', 0), ('again', 0), ('other', 1))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith('.jpg'))


def test_drawing_is_the_same_on_every_machine():
    image = shapes.draw_scene(seed=0, split='train', index=0).image
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == '02c04e3487c27b44'


def test_train_and_val_show_different_images():
    train, val = (shapes.draw_scene(0, split, 0).image for split in ('train', 'val'))
    assert not np.array_equal(train, val)


def test_visible_parts_do_not_overlap():
    scenes = [shapes.draw_scene(0, 'train', index) for index in range(32)]
    for scene in scenes:
        assert np.sum([*scene.masks, scene.crowd], axis=0).max(initial=0) <= 1


def test_coco_has_every_kind_of_annotation(coco):
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(shapes.SHAPES)
    assert {a['category_id'] for a in annotations if not a['iscrowd']} == {1, 2, 3}
    assert any(a['iscrowd'] and isinstance(a['segmentation'], dict) for a in annotations)
    assert any(not coco.getAnnIds(imgIds=i) for i in coco.getImgIds())
    assert len({a['id'] for a in annotations}) == len(annotations)


def test_coco_masks_fill_their_boxes_and_areas(coco):
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation['bbox']
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(drawn, [x, y, x + width, y + height], atol=1)
        assert mask.sum() == pytest.approx(annotation['area'], rel=0.06)


def test_polygons_follow_what_was_drawn(coco_root):
    coco = COCO(coco_root / 'annotations' / 'instances_train2017.json')
    for index in range(8):
        scene = shapes.draw_scene(0, 'train', index)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=index + 1, iscrowd=False))
        assert len(annotations) == len(scene.masks)
        for annotation, mask in zip(annotations, scene.masks):
            read = coco.annToMask(annotation).astype(bool)
            assert (read & mask).sum() / (read | mask).sum() > 0.93


def test_coco_crowd_is_read_back_to_the_pixel(coco_root):
    coco = COCO(coco_root / 'annotations' / 'instances_train2017.json')
    crowd = coco.loadAnns(coco.getAnnIds(imgIds=4, iscrowd=True))[0]
    scene = shapes.draw_scene(0, 'train', 3)
    assert np.array_equal(coco.annToMask(crowd).astype(bool), scene.crowd)


def test_mmdet_reads_boxes_masks_and_semantic_maps(coco_root):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules()
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    ]
    dataset = CocoDataset(
        data_root=str(coco_root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/', seg='stuffthingmaps/train2017/'),
        metainfo=dict(classes=shapes.SHAPES),
        pipeline=steps,
    )
    assert len(dataset) == shapes.NUM_IMAGES['train']
    sample = dataset[3]
    assert sample['img'].shape == (128, 128, 3)
    assert len(sample['gt_masks']) == len(sample['gt_bboxes']) > 1
    assert sample['gt_ignore_flags'].sum() == 1
    assert set(np.unique(sample['gt_seg_map'])) <= {0, 1, 2, 255}


def test_panoptic_maps_hold_every_object_crowd_and_the_ground(coco_root):
    content = json.loads((coco_root / 'annotations' / 'panoptic_train2017.json').read_text())
    assert [(c['id'], c['isthing']) for c in content['categories']] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 0),
    ]
    for index in range(8):
        scene, image = shapes.draw_scene(0, 'train', index), content['annotations'][index]
        ids = rgb2id(
            np.asarray(
                Image.open(coco_root / 'annotations' / 'panoptic_train2017' / image['file_name'])
            )
        )
        segments = {segment['id']: segment for segment in image['segments_info']}
        assert set(np.unique(ids)) == set(segments)
        for mask, label in zip(scene.masks, scene.labels):
            (number,) = np.unique(ids[mask])
            assert np.array_equal(ids == number, mask)
            assert segments[number]['category_id'] == label + 1
            assert segments[number]['area'] == mask.sum()
        crowd = [number for number in segments if segments[number]['iscrowd']]
        assert np.array_equal(np.isin(ids, crowd), scene.crowd)


def test_mmdet_reads_panoptic_maps(coco_root):
    from mmdet.datasets import CocoPanopticDataset
    from mmdet.utils import register_all_modules

    register_all_modules()
    dataset = CocoPanopticDataset(
        data_root=str(coco_root),
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
        metainfo=dict(
            classes=(*shapes.SHAPES, shapes.GROUND),
            thing_classes=shapes.SHAPES,
            stuff_classes=(shapes.GROUND,),
        ),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadPanopticAnnotations')],
    )
    sample, scene = dataset[3], shapes.draw_scene(0, 'train', 3)
    assert np.array_equal(sample['gt_masks'].masks, scene.masks)
    assert list(sample['gt_bboxes_labels']) == scene.labels
    wanted = np.full(scene.crowd.shape, 3)
    for mask, label in [*zip(scene.masks, scene.labels), (scene.crowd, scene.crowd_label)]:
        wanted[mask] = label
    assert np.array_equal(sample['gt_seg_map'], wanted)


def test_mmseg_reads_ade20k(ade_root):
    from mmseg.datasets import ADE20KDataset
    from mmseg.utils import register_all_modules

    register_all_modules()
    dataset = ADE20KDataset(
        data_root=str(ade_root),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
        ],
    )
    assert len(dataset) == shapes.NUM_IMAGES['val']
    labels = np.unique([dataset[index]['gt_seg_map'] for index in range(8)])
    assert list(labels) == [0, 1, 2, 3, 255]


def test_ade20k_leaves_only_crowds_unlabelled(ade_root):
    for index in range(8):
        labels = np.asarray(
            Image.open(ade_root / 'annotations' / 'training' / f'ADE_train_{index + 1:08}.png')
        )
        assert np.array_equal(labels == 0, shapes.draw_scene(0, 'train', index).crowd)


def test_default_folder_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_CACHE', str(tmp_path))
    root = mini_coco()
    assert root.parent == tmp_path
    assert json.loads((root / 'annotations' / 'instances_val2017.json').read_text())['images']


def test_an_existing_dataset_is_left_alone(coco_root):
    before = (coco_root / 'annotations').stat().st_mtime_ns
    assert mini_coco(coco_root) == coco_root
    assert (coco_root / 'annotations').stat().st_mtime_ns == before


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(shapes, 'save_photograph', fail)
    with pytest.raises(OSError, match='disk full'):
        mini_coco(tmp_path / 'mini')
    assert not list(tmp_path.iterdir())


def test_of_two_processes_that_draw_at_once_one_wins_and_both_have_it(tmp_path, monkeypatch):
    root, write = tmp_path / 'mini', shapes._write_coco

    def write_slowly(draft, seed):
        monkeypatch.setattr(shapes, '_write_coco', write)
        write(draft, seed)
        mini_coco(root, seed)  # the quicker process is done before this one is

    monkeypatch.setattr(shapes, '_write_coco', write_slowly)
    assert mini_coco(root) == root
    assert [path.name for path in tmp_path.iterdir()] == ['mini']
    assert len(list((root / 'train2017').iterdir())) == shapes.NUM_IMAGES['train']


def test_keypoints_of_the_mini_dataset_are_the_ends_of_the_shapes():
    content = json.loads((mini_coco() / 'annotations/person_keypoints_val2017.json').read_text())
    masks = shapes.draw_scene(0, 'val', 0).masks
    annotations = [a for a in content['annotations'] if a['image_id'] == 1]
    for annotation, mask in zip(annotations, masks, strict=True):
        points = np.reshape(annotation['keypoints'], (4, 3))[:, :2]
        assert all(mask[y, x] for x, y in points)
        x, y, width, height = annotation['bbox']
        (_, top), (right, _), (_, bottom), (left, _) = points
        assert (left, top, right + 1, bottom + 1) == (x, y, x + width, y + height)
