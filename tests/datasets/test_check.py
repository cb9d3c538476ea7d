import json

import numpy as np
import pytest
from PIL import Image

from focal_mm.datasets.check import (
    Report,
    check_coco,
    check_folders,
    check_label_maps,
    check_overlap,
)

pytestmark = pytest.mark.stock


def faults(report):
    return {(finding.level, finding.fault) for finding in report.findings}


@pytest.fixture
def look(write_coco):
    """Changes a good COCO file by a function and checks it."""

    def check(change=lambda content: None, **options):
        file, folder, content = write_coco()
        change(content)
        file.write_text(json.dumps(content))
        report = Report()
        check_coco(file, folder, report, masks=True, **options)
        return report

    return check


def test_good_file_has_no_faults(look):
    assert look(thorough=True).findings == []


def change_one(**fields):
    return lambda content: content['annotations'][1].update(fields)


def drop(key):
    return lambda content: content['annotations'][1].pop(key)


@pytest.mark.parametrize(
    'change, level, fault',
    [
        (change_one(category_id=99), 'error', 'unknown category'),
        (change_one(image_id=99), 'error', 'unknown image'),
        (change_one(id=1), 'error', 'annotation id that occurs twice'),
        (change_one(bbox=[float('nan'), 5, 20, 10]), 'error', 'not finite'),
        (change_one(bbox=[5, float('inf'), 20, 10]), 'error', 'not finite'),
        (change_one(bbox=[5, 5, -20, 10]), 'error', 'negative'),
        (change_one(bbox=[5, 5, 20]), 'error', 'not [x, y, width, height]'),
        (change_one(bbox=None), 'error', 'not [x, y, width, height]'),
        (change_one(bbox=[5, 5, 0, 10]), 'warning', 'under a pixel'),
        (change_one(bbox=[70, 5, 20, 10]), 'error', 'outside the picture'),
        (change_one(bbox=[50, 5, 20, 10]), 'warning', 'over the edge'),
        (change_one(area=0), 'warning', 'area of 0'),
        (drop('area'), 'error', 'without an area'),
        (drop('segmentation'), 'error', 'without a mask'),
        (change_one(segmentation=[]), 'error', 'without a mask'),
        (change_one(segmentation=[[1, 1, 9, 9]]), 'error', 'fewer than three points'),
        (change_one(segmentation=[[1, 1, float('nan'), 9, 5, 5]]), 'error', 'not finite numbers'),
        (change_one(segmentation=[[1, 1, 5, 5, 9, 9]]), 'warning', 'polygon without an area'),
        (
            change_one(segmentation=dict(size=[9, 9], counts=[81])),
            'error',
            'mask of another size',
        ),
        (lambda c: c['images'][0].update(id=2), 'error', 'image id that occurs twice'),
        (lambda c: c['images'][0].update(width=33), 'error', 'another size than width'),
        (lambda c: c['images'][0].pop('height'), 'error', 'without width and height'),
        (lambda c: c['images'][0].update(file_name='no.jpg'), 'error', 'missing picture'),
        (lambda c: c['images'].clear(), 'error', 'no images'),
        (lambda c: c['annotations'].clear(), 'error', 'no annotations'),
        (lambda c: c.pop('categories'), 'error', 'no COCO file'),
        (lambda c: c['categories'].append(dict(id=1, name='ufo')), 'warning', 'without examples'),
        (lambda c: c['categories'].append(dict(id=1, name='dog')), 'error', 'same name'),
        (
            lambda c: [one.update(iscrowd=1) for one in c['annotations']],
            'error',
            'every annotation is iscrowd',
        ),
    ],
)
def test_fault_of_a_coco_file_is_found_and_placed(look, change, level, fault):
    found = [one for one in look(change).findings if fault in one.fault]
    assert [one.level for one in found] == [level]
    assert found[0].file and found[0].count >= 1


def test_finding_names_file_ids_and_count(look):
    report = look(lambda c: [one.update(category_id=99) for one in c['annotations']])
    line = str(next(one for one in report.findings if 'unknown category' in one.fault))
    assert line.startswith('error: ') and 'train.json: 4 x ' in line and 'id 1 (99), id 2' in line


def test_broken_json_is_a_finding(tmp_path):
    report = Report()
    (tmp_path / 'a.json').write_text('{"images": [')
    check_coco(tmp_path / 'a.json', tmp_path, report)
    assert 'no JSON' in report.findings[0].fault


@pytest.mark.parametrize(
    'content, quick', [(b'', True), (b'no picture at all', True), (None, False)]
)
def test_broken_pictures_are_found(write_coco, content, quick):
    file, folder, _ = write_coco()
    path = next(folder.rglob('*.jpg'))
    path.write_bytes(path.read_bytes()[:-900] if content is None else content)  # or cut off
    for thorough in (False, True):
        report = Report()
        check_coco(file, folder, report, thorough=thorough)
        assert bool(report.errors) == (quick or thorough)


def test_size_is_the_one_that_opencv_reads(write_coco):
    file, folder, content = write_coco()
    path = folder / content['images'][0]['file_name']
    image = Image.open(path).rotate(90, expand=True)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    report = Report()
    check_coco(file, folder, report)
    assert report.findings == []


def test_same_picture_in_both_sets(tmp_path):
    for name in ('a/1.jpg', 'b/1.jpg', 'b/2.jpg', 'c/1.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'2' if name == 'b/1.jpg' else b'1')
    train = {'1.jpg': tmp_path / 'a/1.jpg'}
    for val, level in (
        ({'x': tmp_path / 'b/../a/1.jpg'}, ['warning']),
        ({'1.jpg': tmp_path / 'b/1.jpg'}, []),
        ({'2.jpg': tmp_path / 'b/2.jpg'}, []),
        ({'1.jpg': tmp_path / 'c/1.jpg'}, ['warning']),
    ):
        report = Report()
        check_overlap(train, val, report)
        assert [finding.level for finding in report.findings] == level


def save(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)


@pytest.mark.parametrize(
    'change, fault',
    [
        (lambda path: path.unlink(), 'no label map'),
        (lambda path: path.write_bytes(b''), '0 bytes'),
        (lambda path: path.write_bytes(b'x'), 'cannot be read'),
        (lambda path: save(path, np.zeros((24, 32, 3), np.uint8)), 'of colors'),
        (lambda path: save(path, np.zeros((9, 9), np.uint8)), 'another size'),
        (lambda path: save(path, np.full((24, 32), 3, np.uint8)), 'beyond the 3 classes'),
        (lambda path: save(path, np.full((24, 32), 999, np.uint16)), 'beyond the 3 classes'),
        (lambda path: save(path, np.full((24, 32), 255, np.uint8)), 'every pixel is ignored'),
    ],
)
def test_fault_of_label_maps_is_found_and_placed(write_maps, change, fault):
    images, maps = write_maps()
    report = Report()
    check_label_maps(images, maps, report, 'abc')
    assert report.findings == []
    change(maps / 'a b' / 'train 1.png')
    check_label_maps(images, maps, report, 'abc')
    (finding,) = report.findings
    assert fault in finding.fault and 'train 1' in finding.examples[0]


def test_labels_of_a_palette_are_its_indices(write_maps):
    images, maps = write_maps()
    for path in maps.rglob('*.png'):
        labels = Image.open(path).convert('L')
        labels.putpalette([9] * 768)
        labels.save(path)
    report = Report()
    check_label_maps(images, maps, report, 'abc')
    assert report.findings == []


def test_class_without_pixels_and_label_zero(write_maps):
    images, maps = write_maps()
    report = Report()
    check_label_maps(images, maps, report, 'abcd')
    assert faults(report) == {('warning', 'class without examples')}
    report = Report()
    check_label_maps(images, maps, report, 'ab', reduce_zero_label=True)
    assert report.findings == []


def test_folders_of_classes(tmp_path):
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
    Image.new('RGB', (9, 9)).save(tmp_path / 'cat' / '1.png')
    (tmp_path / 'cat' / '2.png').write_bytes(b'')
    report = Report()
    assert len(check_folders(tmp_path, report)) == 2
    assert faults(report) == {('error', 'class without pictures'), ('error', 'picture of 0 bytes')}
