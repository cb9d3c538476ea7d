"""Each fault of a file of COCO's form is found, named, and mended in a copy or left out of it."""

import gzip
import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from focal_mm.cache import cache_dir
from focal_mm.datasets.check import CocoFile, Report, Rules
from focal_mm.datasets.check.fix import write_coco as write_copy
from focal_mm.datasets.check.masks import run_totals
from focal_mm.datasets.check.resizing import Resizing, resizing_of

pytestmark = pytest.mark.stock


def test_good_file_has_no_faults(change_coco, faults):
    assert faults(change_coco(lambda content: None), thorough=True) == set()


def one(**fields):
    return lambda content: content['annotations'][1].update(fields)


def image(**fields):
    return lambda content: content['images'][1].update(fields)


def every(**fields):
    return lambda content: [record.update(fields) for record in content['annotations']]


def drop(key):
    return lambda content: content['annotations'][1].pop(key)


def place(table, value):
    return lambda content: content[table].__setitem__(1, value)


HUGE = 10**400
TRIANGLE = [5, 5, 25, 5, 25, 15]
BOX = 'not [x, y, width, height]'
POLYGON = 'no list of finite numbers'
RUNS = 'run lengths that do not fill'

RECORDS = {
    # of the annotation's references
    'category': (one(category_id=99), 'error', 'unknown category'),
    'category_string': (one(category_id='7'), 'error', 'unknown category'),
    'category_object': (one(category_id={}), 'error', 'unknown category'),
    'image': (one(image_id=99), 'error', 'unknown image'),
    'image_list': (one(image_id=[1]), 'error', 'unknown image'),
    'id_repeated': (one(id=1), 'error', 'annotation id that occurs twice'),
    'id_string': (one(id='b'), 'error', 'annotation id that is a string'),
    'id_null': (one(id=None), 'error', 'annotation without an id'),
    'id_nan': (one(id=math.nan), 'error', 'annotation without an id'),
    'id_huge': (one(id=2**60), 'error', 'beyond 2^53'),
    'id_zero': (one(id=0), 'warning', 'annotation id 0'),
    'record_null': (place('annotations', None), 'error', 'no object of names'),
    'record_list': (place('annotations', [1]), 'error', 'no object of names'),
    # of its box
    'nan': (one(bbox=[math.nan, 5, 20, 10]), 'error', 'not finite'),
    'infinite': (one(bbox=[5, math.inf, 20, 10]), 'error', 'not finite'),
    'huge': (one(bbox=[5, 5, HUGE, 10]), 'error', 'not finite'),
    'negative': (one(bbox=[5, 5, -20, 10]), 'error', 'negative'),
    'three': (one(bbox=[5, 5, 20]), 'error', BOX),
    'null': (one(bbox=None), 'error', BOX),
    'strings': (one(bbox=['5', '5', '20', '10']), 'error', BOX),
    'truths': (one(bbox=[True, False, True, True]), 'error', BOX),
    'nested': (one(bbox=[[5, 5, 20, 10]]), 'error', BOX),
    'empty': (one(bbox=[5, 5, 0, 10]), 'error', 'empty bbox'),
    'tiny': (one(bbox=[5, 5, 0.5, 10]), 'warning', 'under a pixel'),
    'outside': (one(bbox=[70, 5, 20, 10]), 'error', 'outside the picture'),
    'over': (one(bbox=[50, 5, 20, 10]), 'warning', 'over the edge'),
    'corners': (every(bbox=[30, 20, 58, 39]), 'error', '[left, top, right, bottom]'),
    'fractions': (every(bbox=[0.1, 0.1, 0.5, 0.5]), 'error', 'fractions of the picture'),
    # of its area and crowd
    'area_zero': (one(area=0), 'error', 'area of 0'),
    'area': (drop('area'), 'error', 'without an area'),
    'area_string': (one(area='200'), 'error', 'without an area'),
    'crowd_string': (one(iscrowd='0'), 'error', 'neither 0 nor 1'),
    'crowds': (every(iscrowd=1), 'error', 'every annotation is iscrowd'),
    'ignored': (every(ignore=1), 'error', 'no annotation that can be trained on'),
    # of its mask
    'mask': (drop('segmentation'), 'error', 'without a mask'),
    'mask_empty': (one(segmentation=[]), 'error', 'without a mask'),
    'mask_text': (one(segmentation='5 5 25 5'), 'error', 'without a mask'),
    'two_points': (one(segmentation=[[1, 1, 9, 9]]), 'error', 'fewer than three points'),
    'half_point': (one(segmentation=[[*TRIANGLE, 1]]), 'error', 'half a point'),
    'part': (one(segmentation=[TRIANGLE, [1, 1]]), 'warning', 'a part has fewer'),
    'point_nan': (one(segmentation=[[1, 1, math.nan, 9, 5, 5]]), 'error', POLYGON),
    'point_huge': (one(segmentation=[[1, 1, HUGE, 9, 5, 5]]), 'error', POLYGON),
    'point_null': (one(segmentation=[[None] * 6]), 'error', POLYGON),
    'point_string': (one(segmentation=[['1', '1', '9', '9', '5', '1']]), 'error', POLYGON),
    'point_far': (one(segmentation=[[1, 1, 1e9, 9, 5, 5]]), 'error', 'far from the picture'),
    'no_list': (one(segmentation=TRIANGLE), 'error', POLYGON),
    'flat': (one(segmentation=[[1, 1, 5, 5, 9, 9]]), 'warning', 'without an area'),
    'mask_size': (
        one(segmentation=dict(size=[9, 9], counts=[81])),
        'error',
        'mask of another size',
    ),
    'mask_bomb': (
        one(segmentation=dict(size=[10**9, 10**9], counts=[10**18])),
        'error',
        'mask of another size',
    ),
    'mask_huge': (
        lambda c: (
            image(width=None)(c),
            one(segmentation=dict(size=[HUGE, 9], counts='P'))(c),
        ),
        'error',
        'mask of another size',
    ),
    'runs_short': (one(segmentation=dict(size=[40, 60], counts=[5])), 'error', RUNS),
    'runs_negative': (one(segmentation=dict(size=[40, 60], counts=[-5, 2405])), 'error', RUNS),
    'runs_garbage': (one(segmentation=dict(size=[40, 60], counts='!é!')), 'error', RUNS),
    'runs_none': (one(segmentation=dict(size=[40, 60])), 'error', 'without counts'),
    # of images
    'image_repeated': (
        lambda c: c['images'].append(dict(c['images'][0])),
        'error',
        'image id that occurs twice',
    ),
    'image_id': (image(id=1), 'error', 'image id that occurs twice'),
    'image_null': (place('images', None), 'error', 'no object of names'),
    'image_size': (lambda c: c['images'][0].pop('height'), 'error', 'without width and height'),
    'image_size_string': (image(width='60'), 'error', 'without width and height'),
    'image_size_huge': (image(width=HUGE), 'error', 'without width and height'),
    'image_wrong_size': (image(width=33), 'error', 'another size than width'),
    'image_larger': (image(width=600, height=400), 'error', 'smaller than width and height'),
    'image_exchanged': (image(width=40, height=60), 'error', 'width and height are exchanged'),
    'name_missing': (image(file_name='no.jpg'), 'error', 'missing picture'),
    'name_null': (image(file_name=None), 'error', 'without a file_name'),
    'name_nul': (image(file_name='a\0.jpg'), 'error', 'without a file_name'),
    'name_long': (image(file_name='a' * 5000), 'error', 'missing picture'),
    'name_surrogate': (image(file_name='\ud800.jpg'), 'error', 'missing picture'),
    'no_images': (lambda c: c['images'].clear(), 'error', 'no images'),
    'no_annotations': (lambda c: c['annotations'].clear(), 'error', 'no annotations'),
    # of categories
    'category_without_examples': (
        lambda c: c['categories'].append(dict(id=1, name='ufo')),
        'warning',
        'without examples',
    ),
    'category_repeated': (
        lambda c: c['categories'].append(dict(id=1, name='dog')),
        'error',
        'same name',
    ),
    'category_alike': (
        lambda c: c['categories'].append(dict(id=1, name='Dog ')),
        'warning',
        'upper case or blanks',
    ),
    'category_id': (
        lambda c: c['categories'].append(dict(id=7, name='ufo')),
        'error',
        'category id that occurs twice',
    ),
    'category_name': (place('categories', dict(id=30)), 'error', 'category without a name'),
    'categories_dict': (lambda c: c.update(categories={'1': 'dog'}), 'error', 'no list of cat'),
    'categories_names': (lambda c: c.update(categories=['a']), 'error', 'no object of names'),
    'categories_nested': (lambda c: c.update(categories=[[]]), 'error', 'no object of names'),
    'images_null': (lambda c: c.update(images=None), 'error', 'no list of images'),
}
UNMENDABLE = {
    'corners', 'fractions', 'crowds', 'ignored', 'no_images', 'no_annotations', 'images_null',
    *(name for name in RECORDS if name.startswith('categor')),
} - {'category', 'category_string', 'category_object', 'category_alike'}  # fmt: skip


@pytest.mark.parametrize('name', RECORDS)
def test_fault_is_found_and_placed_and_a_copy_is_without_it(change_coco, tmp_path, name):
    change, level, words = RECORDS[name]
    source, report = change_coco(change), Report()
    before = source.file.read_bytes()
    checked = source.check(report, thorough=True)
    found = [finding for finding in report.findings if words in finding.fault]
    assert [finding.level for finding in found] == [level]
    assert found[0].file and found[0].count >= 1
    if report.errors and name not in UNMENDABLE:
        copy = write_copy(source, checked, tmp_path / 'copy.json')
        assert not copy.remaining
        assert copy.left_out + copy.changed > 0
        again = Report()
        CocoFile(tmp_path / 'copy.json', source.folder, source.rules).check(again, thorough=True)
        assert not again.errors
    assert source.file.read_bytes() == before


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda raw: b'', 'empty file'),
        (lambda raw: bytes(99), 'nothing but zeros'),
        (lambda raw: raw[:200], 'cut off'),
        (lambda raw: b'\xef\xbb\xbf' + raw, 'byte order mark'),
        (lambda raw: raw.decode().encode('utf-16'), 'UTF-16'),
        (lambda raw: raw.replace(b'"dog"', b'"d\xf6g"'), 'no text in UTF-8'),
        (gzip.compress, 'gzip'),
        (lambda raw: b'[' + raw + b']', 'a list of JSON'),
        (lambda raw: raw + b'\n' + raw, 'more after the end'),
        (lambda raw: raw[:-1] + b', "annotations": []}', 'occurs twice in one object'),
        (lambda raw: b'<!DOCTYPE html><html>404</html>', 'a web page'),
        (lambda raw: b'version https://git-lfs.github.com/spec/v1', 'Git LFS'),
        (lambda raw: b'[' * 100_000, 'no JSON'),
        (lambda raw: raw.replace(b'200', b'9' * 5000), 'no JSON'),
        (lambda raw: b'null', 'null'),
        (lambda raw: b'{"shapes": []}', 'labelme'),
    ],
)
def test_file_that_is_none_of_coco(change_coco, change, words):
    report = Report()
    change_coco(change, raw=True).check(report)
    assert any(words in finding.fault for finding in report.findings if finding.level == 'error')


def test_finding_names_file_ids_and_count(change_coco):
    report = Report()
    source = change_coco(every(category_id=99))
    source.check(report)
    line = str(next(one for one in report.findings if 'unknown category' in one.fault))
    assert line.startswith('error: ')
    assert 'train.json: 4 x ' in line and 'id 1 (99), id 2' in line


def test_what_coco_itself_has_is_no_error(write_coco, faults):
    file, folder, content = write_coco(count=12)
    for annotation in content['annotations'][:3]:
        annotation['bbox'] = [39.7, 29.9, 20.8, 10.6]  # over the edge by rounding
    del content['annotations'][5]  # a picture without annotations
    crowd = np.asfortranarray(np.ones((40, 60), np.uint8))
    compressed = coco_mask.encode(crowd)
    content['annotations'][6] |= dict(
        iscrowd=1, segmentation=dict(size=[40, 60], counts=compressed['counts'].decode())
    )
    content['annotations'][7] |= dict(iscrowd=1, segmentation=dict(size=[40, 60], counts=[0, 2400]))
    content['annotations'] += [
        dict(content['annotations'][0], id=100 + i, bbox=[1, 1, 9, 9]) for i in range(2000)
    ]
    content['annotations'][9]['bbox'] = [1, 1, 5, 0]  # two of 860,000 have no height
    file.write_text(json.dumps(content))
    found = faults(CocoFile(file, folder, Rules(masks=True)), thorough=True)
    assert found == {('warning', 'empty bbox, which is not trained on')}


def test_run_lengths_are_those_of_pycocotools():
    texts, sizes = [], []
    for i in range(60):
        height, width = np.random.randint(1, 99, 2)
        drawn = np.random.random((height, width)) < (0, 1, 0.5, 0.02)[i % 4]
        texts.append(coco_mask.encode(np.asfortranarray(drawn.astype(np.uint8)))['counts'])
        sizes.append(height * width)
    totals, sound = run_totals(texts)
    assert sound.all() and totals.tolist() == sizes


def test_test_set_needs_no_annotations(change_coco, faults):
    source = change_coco(lambda c: c.pop('annotations'), Rules(role='test'))
    assert faults(source) == set()
    assert faults(change_coco(lambda c: c.pop('annotations'), Rules(role='val')))


def keypoints(points, **fields):
    def change(content):
        for annotation in content['annotations']:
            annotation |= dict(keypoints=[6, 6, 2, 8, 8, 1], num_keypoints=2)
        for category in content['categories']:
            category['keypoints'] = ['nose', 'tail']
        content['annotations'][1] |= dict(keypoints=points, **fields)

    return change


@pytest.mark.parametrize(
    'points, fields, level, words',
    [
        ([6, 6, 2], {}, 'error', 'another number'),
        ([6, 6, 2, 8], {}, 'error', 'another number'),
        ([6, 6, 3, 8, 8, 1], {}, 'error', 'visibility'),
        ([6, 6, 2, math.nan, 8, 1], {}, 'error', 'not finite'),
        (['6', 6, 2, 8, 8, 1], {}, 'error', 'no list of numbers'),
        ([6, 6, 2, 99, 8, 1], {}, 'warning', 'outside the picture'),
        ([6, 6, 2, 8, 8, 0], {}, 'warning', 'number of labelled'),
    ],
)
def test_faults_of_keypoints(change_coco, faults, points, fields, level, words):
    rules = Rules(keypoints=True, areas=False)
    assert faults(change_coco(keypoints([6, 6, 2, 8, 8, 1]), rules)) == set()
    ((found, text),) = faults(change_coco(keypoints(points, **fields), rules))
    assert found == level and words in text


def lvis(change=lambda content: None):
    def make(content):
        for category in content['categories']:
            category['frequency'] = 'c'
        for i, record in enumerate(content['images']):
            record |= dict(
                coco_url=f'http://images.cocodataset.org/{record.pop("file_name")}',
                neg_category_ids=[(30, 7)[(i + 1) % 2]],
                not_exhaustive_category_ids=[],
            )
        change(content)

    return make


@pytest.mark.parametrize(
    'change, words',
    [
        (image(neg_category_ids=None), 'without lists neg_category_ids'),
        (image(neg_category_ids=[99]), 'unknown category'),
        (image(neg_category_ids=[7, 30]), 'lists as absent'),
        (image(coco_url=None), 'without a coco_url'),
        (lambda c: c['categories'][0].update(frequency='x'), 'frequency'),
    ],
)
def test_faults_of_lvis(change_coco, faults, change, words):
    fields = dict(rules=Rules(lvis=True), naming='coco_url')
    assert faults(change_coco(lvis(), **fields)) == set()
    assert any(words in text for _, text in faults(change_coco(lvis(change), **fields)))


def test_boxes_that_resizing_makes_smaller_than_a_pixel(change_coco, faults):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(
            type='RandomChoice',
            transforms=[
                [dict(type='RandomChoiceResize', scales=[(6, 4), (30, 20)], keep_ratio=True)],
                [dict(type='Resize', scale=(12, 12), keep_ratio=True)],
            ],
        ),
    ]
    resizing = resizing_of(pipeline)
    assert resizing.largest(np.array([[60.0, 40]])).tolist() == [[0.5, 0.5]]
    assert resizing_of([dict(type='Resize', scale=7)]) == Resizing(((7, 7, False),))
    assert faults(change_coco(one(bbox=[5, 5, 2, 2]), resizing=resizing)) == set()
    ((level, text),) = faults(change_coco(one(bbox=[5, 5, 1.5, 2]), resizing=resizing))
    assert level == 'warning' and 'after resizing' in text


def test_what_was_found_is_remembered_by_content(change_coco, monkeypatch):
    source = change_coco(one(category_id=99))
    first, again, other = Report(), Report(), Report()
    source.check(first)
    assert list((cache_dir() / 'checks').glob('*.json'))
    monkeypatch.setattr(CocoFile, '_examine', lambda self: pytest.fail('read again'))
    source.check(again)
    assert again.findings == first.findings and again.looked_at == first.looked_at
    monkeypatch.undo()
    source.file.write_text(source.file.read_text().replace('99', '7'))
    source.check(other)
    assert other.errors == 0


def test_pictures_are_looked_at_although_the_file_is_remembered(change_coco, faults):
    source = change_coco(lambda content: None)
    assert faults(source) == set()
    next(source.folder.rglob('*.jpg')).write_bytes(b'')
    assert faults(source) == {('error', 'picture of 0 bytes')}


def test_copy_keeps_what_can_be_kept(change_coco, tmp_path):
    def spoil(content):
        first, second, third, fourth = content['annotations']
        first['segmentation'] = [TRIANGLE, [1, 1]]
        second['segmentation'] = [[1, 1, math.nan, 9, 5, 5], TRIANGLE]
        third |= dict(id=1)
        fourth.pop('area')
        content['images'][0].pop('width')
        content['annotations'].append(dict(first))

    source = change_coco(spoil)
    copy = write_copy(source, source.check(Report(), True), tmp_path / 'copy.json')
    content = json.loads((tmp_path / 'copy.json').read_text())
    masks = [annotation['segmentation'] for annotation in content['annotations']]
    assert masks[:2] == [[TRIANGLE], [TRIANGLE]]
    assert len({annotation['id'] for annotation in content['annotations']}) == 4
    assert content['annotations'][3]['area'] == 200
    assert content['images'][0]['width'] == 60
    left_out = json.loads((tmp_path / 'copy.left_out.json').read_text())
    assert left_out['source'] == str(source.file)
    assert [record['reason'] for record in left_out['annotations']] == [
        'repeats another annotation'
    ]
    assert copy.left_out == 1 and copy.changed == len(left_out['changed']) == 5


def test_no_copy_over_another_file(change_coco):
    source = change_coco(one(bbox=None))
    with pytest.raises(FileExistsError, match='train.json exists'):
        write_copy(source, source.check(Report(), True), source.file)
