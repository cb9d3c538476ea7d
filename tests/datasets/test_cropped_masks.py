"""Masks as crops beside mmdet's bitmaps, alone and in pipelines."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import LoadAnnotations as MmdetLoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask

from focal_mm.datasets.cropped_masks import CroppedMasks, LoadAnnotations
from focal_mm.engine.sampling import seed_generators

HEIGHT, WIDTH = 60, 81

pytestmark = pytest.mark.stock


def polygon(rng: np.random.Generator) -> list[float]:
    """A polygon that may reach beyond the picture, with coordinates of COCO's two decimals."""
    center, radius = rng.uniform(0, (WIDTH, HEIGHT)), rng.uniform(0.5, 30)
    points = center + rng.uniform(-radius, radius, (rng.integers(3, 9), 2))
    return points.round(2).ravel().tolist()


def annotations(seed: int) -> dict:
    """A picture's annotations of all kinds: polygons, both forms of run lengths, invalid ones."""
    rng = np.random.default_rng(seed)
    crowd = np.asfortranarray(rng.random((HEIGHT, WIDTH)) < 0.3, dtype=np.uint8)
    compressed = coco_mask.encode(crowd)
    compressed['counts'] = compressed['counts'].decode()
    masks = [
        [polygon(rng)],
        [polygon(rng), polygon(rng)],
        [[0.1, 0.3, WIDTH, 0, WIDTH + 5.5, HEIGHT + 3, -4, HEIGHT]],
        [[-9.0, -9, -8, -9, -8, -8]],
        compressed,
        dict(size=[HEIGHT, WIDTH], counts=[100, 30, HEIGHT * WIDTH - 130]),
        [[1.0, 2]],
    ]
    boxes = np.tile(rng.uniform(0, 40, (len(masks), 2)), 2) + np.array([0, 0, 15, 20])
    instances = [
        dict(bbox=box.tolist(), bbox_label=number, mask=mask, ignore_flag=int(mask is compressed))
        for number, (box, mask) in enumerate(zip(boxes, masks))
    ]
    return dict(
        img=rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
        img_shape=(HEIGHT, WIDTH),
        ori_shape=(HEIGHT, WIDTH),
        instances=instances,
    )


def load(picture: dict, transform: type) -> BitmapMasks:
    return transform(with_mask=True)(deepcopy(picture))['gt_masks']


@pytest.fixture(params=range(8))
def pair(request) -> tuple[CroppedMasks, BitmapMasks]:
    picture = annotations(request.param)
    return load(picture, LoadAnnotations), load(picture, MmdetLoadAnnotations)


def assert_same(ours: BitmapMasks, theirs: BitmapMasks) -> None:
    assert (len(ours), ours.height, ours.width) == (len(theirs), theirs.height, theirs.width)
    assert ours.masks.dtype == theirs.masks.dtype == np.uint8
    np.testing.assert_array_equal(ours.masks, theirs.masks)


CHANGES = {
    'nothing': lambda masks: masks,
    'flip': lambda masks: masks.flip(),
    'flip vertically': lambda masks: masks.flip('vertical'),
    'flip both ways': lambda masks: masks.flip('diagonal'),
    'enlarge': lambda masks: masks.rescale((133, 80)),
    'shrink': lambda masks: masks.rescale((50, 33)),
    'shrink by a factor': lambda masks: masks.rescale(0.37),
    'resize': lambda masks: masks.resize((97, 41)),
    'resize smoothly': lambda masks: masks.resize((97, 41), 'bilinear'),
    'choose by number': lambda masks: masks[2],
    'choose by numbers': lambda masks: masks[np.array([5, 0])],
    'choose by truth': lambda masks: masks[np.arange(len(masks)) > 2],
    'choose none': lambda masks: masks[np.array([], int)],
    'crop': lambda masks: masks.crop(np.array([10, 7, 50, 44])),
    'crop an edge': lambda masks: masks.crop(np.array([-3, 20, 33, 99])),
    'crop nothing': lambda masks: masks.crop(np.array([5, 5, 5, 5])),
    'pad': lambda masks: masks.pad((64, 96)),
    'pad with ones': lambda masks: masks.pad((64, 96), 1),
    'expand': lambda masks: masks.expand(90, 120, 11, 13),
    'translate': lambda masks: masks.translate((HEIGHT, WIDTH), 7),
    'all': lambda masks: (
        masks.flip()
        .rescale((133, 100))[np.array([4, 1, 2])]
        .crop(np.array([11, 12, 71, 92]))
        .flip('vertical')
        .resize((55, 66))
        .pad((64, 96))
    ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_masks_change_as_bitmaps_do(pair, change):
    ours, theirs = map(CHANGES[change], pair)
    assert_same(ours, theirs)


@pytest.mark.parametrize('change', CHANGES)
def test_bitmaps_that_were_changed_are_the_masks(pair, change):
    for masks in pair:
        masks.masks[:] = 1 - masks.masks
    ours, theirs = map(CHANGES[change], pair)
    assert_same(ours, theirs)


def test_no_mask_is_an_empty_array(pair):
    ours, theirs = (
        masks[np.array([], int)].flip().rescale((133, 80)).crop(np.array([1, 2, 9, 9]))
        for masks in pair
    )
    assert_same(ours, theirs)


def test_targets_of_a_head_are_the_same(pair):
    boxes = torch.tensor([[0.0, 0, 30, 30], [12.5, 3, 80, 59]])
    index = torch.tensor([1, 4])
    ours, theirs = (masks.crop_and_resize(boxes, (28, 28), index) for masks in pair)
    np.testing.assert_array_equal(ours.masks, theirs.masks)


def test_worker_sends_crops_alone(pair):
    ours, theirs = pair
    ours, theirs = ours[np.array([0, 1])].resize((800, 1080)), theirs[np.array([0, 1])]
    sent = pickle.dumps(ours)
    assert len(sent) < 800 * 1080
    assert_same(pickle.loads(sent), theirs.resize((800, 1080)))


PIPELINES = {
    'plain': [
        dict(type='Resize', scale=(133, 80), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
    ],
    'directions': [
        dict(
            type='RandomFlip',
            prob=[0.3, 0.3, 0.3],
            direction=['horizontal', 'vertical', 'diagonal'],
        ),
        dict(type='Resize', scale=(70, 70), keep_ratio=False),
    ],
    'crop': [
        dict(type='RandomResize', scale=(133, 80), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(40, 40), recompute_bbox=True, allow_negative_crop=True),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), by_mask=True, keep_empty=False),
        dict(type='Pad', size_divisor=32),
    ],
}


@pytest.mark.parametrize('pipeline', PIPELINES)
@pytest.mark.parametrize('empty', [False, True])
def test_pipeline_gives_the_same_pictures_and_annotations(pipeline, empty):
    for seed in range(12):
        picture = annotations(seed)
        if empty:
            picture['instances'] = []
        packed = []
        for first in ('focal_mm.LoadAnnotations', 'LoadAnnotations'):
            seed_generators(seed)
            results = deepcopy(picture)
            meta_keys = ('img_shape', 'flip', 'flip_direction')
            last = dict(type='PackDetInputs', meta_keys=meta_keys)
            with DefaultScope.overwrite_default_scope('mmdet'):
                for step in [dict(type=first, with_mask=True), *PIPELINES[pipeline], last]:
                    results = results and TRANSFORMS.build(step)(results)
            packed.append(results)
        ours, theirs = packed
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert torch.equal(ours['inputs'], theirs['inputs'])
        ours, theirs = ours['data_samples'], theirs['data_samples']
        assert ours.metainfo == theirs.metainfo
        for kind in ('gt_instances', 'ignored_instances'):
            a, b = getattr(ours, kind), getattr(theirs, kind)
            assert torch.equal(a.bboxes.tensor, b.bboxes.tensor) and torch.equal(a.labels, b.labels)
            assert_same(a.masks, b.masks)


def test_polygons_stay_polygons():
    results = LoadAnnotations(with_mask=True, poly2mask=False)(annotations(0))
    assert type(results['gt_masks']) is PolygonMasks
