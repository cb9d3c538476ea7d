"""Label maps, folders of classes, lists of labels, Pascal VOC and panoptic segmentation."""

import json

import numpy as np
import pytest
from PIL import Image

from focal_mm.datasets.check import (
    ClassFolder,
    LabelList,
    LabelMaps,
    PanopticFile,
    Report,
    VocFiles,
)
from focal_mm.datasets.check.fix import write_list

pytestmark = pytest.mark.stock


def save(array, kind=None):
    return lambda path: Image.fromarray(np.asarray(array)).save(path, kind)


@pytest.mark.parametrize(
    'change, fault',
    [
        (lambda path: path.unlink(), 'no label map'),
        (lambda path: path.write_bytes(b''), '0 bytes'),
        (lambda path: path.write_bytes(b'x'), 'cannot be read'),
        (save(np.zeros((24, 32, 3), np.uint8)), 'of colors'),
        (save(np.zeros((24, 32, 4), np.uint8)), 'of colors'),
        (save(np.zeros((24, 32), np.uint8), 'JPEG'), 'JPEG'),
        (save(np.zeros((24, 32), np.float32), 'TIFF'), 'other values'),
        (save(np.zeros((9, 9), np.uint8)), 'another size'),
        (save(np.full((24, 32), 3, np.uint8)), 'beyond the 3 classes'),
        (save(np.full((24, 32), 999, np.uint16)), 'beyond the 3 classes'),
        (save(np.full((24, 32), 2**31 - 1, np.int32), 'TIFF'), 'beyond the 3 classes'),
        (save(np.full((24, 32), 255, np.uint8)), 'every pixel is ignored'),
    ],
)
def test_fault_of_label_maps_is_found_and_placed(write_maps, faults, tmp_path, change, fault):
    images, maps = write_maps()
    source, report = LabelMaps(images, maps, tuple('abc')), Report()
    assert faults(source) == set()
    change(maps / 'a b' / 'train 1.png')
    checked = source.check(report)
    (finding,) = report.findings
    assert fault in finding.fault and 'train 1' in finding.examples[0]
    if report.errors:
        write_list('maps', checked, tmp_path / 'out.txt')
        kept = LabelMaps(images, maps, tuple('abc'), list_file=tmp_path / 'out.txt')
        assert faults(kept, thorough=True) == set()


def test_label_map_without_a_picture_and_link_to_its_own_folder(write_maps, faults):
    images, maps = write_maps()
    (maps / 'a b' / 'loop').symlink_to(maps)
    next(images.rglob('*.jpg')).unlink()
    assert faults(LabelMaps(images, maps, tuple('abc'))) == {
        ('warning', 'label map without a picture')
    }


def test_labels_of_a_palette_are_its_indices(write_maps, faults):
    images, maps = write_maps()
    for path in maps.rglob('*.png'):
        labels = Image.open(path).convert('L')
        labels.putpalette([9] * 768)
        labels.save(path)
    assert faults(LabelMaps(images, maps, tuple('abc'))) == set()
    ((level, text),) = faults(LabelMaps(images, maps, tuple('abc'), opencv=True))
    assert level == 'error' and 'OpenCV reads as colors' in text


def test_class_without_pixels_and_label_zero(write_maps, faults):
    images, maps = write_maps()
    absent = {('warning', 'class without examples')}
    assert faults(LabelMaps(images, maps, tuple('abcd'))) == absent
    assert faults(LabelMaps(images, maps, tuple('abcd'), role='val')) == set()
    assert faults(LabelMaps(images, maps, tuple('ab'), reduce_zero_label=True)) == set()


@pytest.mark.parametrize(
    'text, words',
    [
        ('\ufeffa b/train 0\n', 'byte order mark'),
        ('a b/train 0\n\na b/train 1\n', 'empty line'),
        ('a b/train 0\na b/train 0\n', 'listed twice'),
        ('a b/train 7\n', 'missing picture'),
        ('', 'no pictures'),
    ],
)
def test_list_of_names(write_maps, faults, tmp_path, text, words):
    images, maps = write_maps()
    (tmp_path / 'list.txt').write_text(text)
    source = LabelMaps(images, maps, tuple('abc'), list_file=tmp_path / 'list.txt')
    assert any(words in fault for _, fault in faults(source))


@pytest.fixture
def class_folder(tmp_path):
    folder = tmp_path / 'set'
    for i, name in enumerate(('cat', 'dog', 'cat/more')):
        (folder / name).mkdir(parents=True)
        Image.new('RGB', (9, 9), (i, 0, 0)).save(folder / name / f'{i}.png')
    return folder


def test_folders_of_classes(class_folder, faults, tmp_path):
    source, report = ClassFolder(class_folder, ('.png',)), Report()
    assert faults(source) == set()
    (class_folder / 'cat' / '2.png').write_bytes(b'')
    (class_folder / 'empty').mkdir()
    (class_folder / 'empty' / 'x.png').mkdir()
    (class_folder / 'notes.txt').write_text('')
    (class_folder / '.hidden.png').write_text('')
    checked = source.check(report)
    assert {(one.level, one.fault) for one in report.findings} == {
        ('error', 'class without pictures'),
        ('error', 'picture of 0 bytes'),
        ('warning', 'file that is not used, being no picture'),
    }
    assert checked.classes == ['cat', 'dog', 'empty']
    write_list('set', checked, tmp_path / 'out.txt')
    assert (tmp_path / 'out.txt').read_text() == 'cat/0.png 0\ncat/more/2.png 0\ndog/1.png 1\n'
    assert faults(LabelList(tmp_path / 'out.txt', class_folder, 2)) == set()


@pytest.mark.parametrize(
    'line, level, words',
    [
        ('dog/1.png 2', 'error', 'beyond the 2 classes'),
        ('dog/1.png -1', 'error', 'beyond'),
        ('dog/1.png one', 'error', 'no whole number'),
        ('dog/1.png 1.0', 'error', 'no whole number'),
        ('dog/1.png', 'error', 'without a label'),
        ('dog/1.png,1', 'error', 'without a label'),
        ('dog/9.png 1', 'error', 'missing picture'),
        ('', 'error', 'empty line'),
        ('cat/0.png 0', 'warning', 'listed twice'),
        ('cat/0.png 1', 'error', 'with other labels'),
    ],
)
def test_fault_of_a_list_of_labels(class_folder, tmp_path, faults, line, level, words):
    (tmp_path / 'list.txt').write_text(f'cat/0.png 0\n{line}\ndog/1.png 1\n')
    found = faults(LabelList(tmp_path / 'list.txt', class_folder, 2))
    assert any(level == one and words in fault for one, fault in found)


OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{0}</xmin>
<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def voc(box=(1, 1, 20, 20), name='cat', size='<width>60</width><height>40</height>'):
    return f'<annotation><size>{size}</size>{OBJECT.format(*box, name=name)}</annotation>'


@pytest.fixture
def voc_files(tmp_path):
    """Two pictures in the layout of Pascal VOC."""
    for folder in ('JPEGImages', 'Annotations'):
        (tmp_path / folder).mkdir()
    for i in range(2):
        Image.new('RGB', (60, 40), (i, 0, 0)).save(tmp_path / 'JPEGImages' / f'{i}.jpg')
        (tmp_path / 'Annotations' / f'{i}.xml').write_text(voc())
    (tmp_path / 'train.txt').write_text('0\n1\n')
    return VocFiles(
        tmp_path / 'train.txt', tmp_path / 'JPEGImages', tmp_path / 'Annotations', ('cat',)
    )


@pytest.mark.parametrize(
    'text, words',
    [
        (voc((20, 1, 1, 20)), 'maximum is below'),
        (voc((1, 1, 1, 20)), 'empty bndbox'),
        (voc((100, 1, 120, 20)), 'outside the picture'),
        (voc((1, 1, 'nan', 20)), 'not four finite'),
        (voc((1, 1, 'inf', 20)), 'not four finite'),
        (voc((1, 1, '', 20)), 'not four finite'),
        (voc((1, 1, 70, 20)), 'over the edge'),
        (voc(name='Cat '), 'upper case or blanks'),
        (voc(name='cow'), 'class that is not listed'),
        (voc(size=''), 'size without width'),
        (voc(size='<width>40</width><height>60</height>'), 'are exchanged'),
        (voc().replace('bndbox', 'polygon'), 'without a bndbox'),
        (voc().replace('name', 'label'), 'without a name'),
        (voc().replace('>0<', '>maybe<'), 'difficult'),
        (voc()[:-20], 'no XML'),
        ('', '0 bytes'),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + voc(), 'entities'),
        (None, 'missing XML'),
    ],
)
def test_fault_of_voc(voc_files, faults, text, words):
    assert faults(voc_files, thorough=True) == set()
    path = voc_files.annotations / '1.xml'
    path.unlink() if text is None else path.write_text(text)
    assert any(words in fault for _, fault in faults(voc_files))


def test_list_of_one_class_of_voc(voc_files, faults):
    voc_files.file.write_text('0  1\n1 -1\n')
    ((level, text),) = faults(voc_files)
    assert level == 'error' and 'second column' in text


@pytest.fixture
def panoptic(tmp_path):
    """Writes a panoptic file after a change; returns what is to be checked."""

    def write(change=lambda content, ids: None):
        ids = np.zeros((40, 60, 3), np.uint8)
        ids[:20, :, 1], ids[20:, :, 0] = 1, 7
        content = dict(
            images=[dict(id=1, file_name='1.jpg', width=60, height=40)],
            categories=[dict(id=3, name='sky', isthing=0), dict(id=5, name='cat', isthing=1)],
            annotations=[
                dict(
                    image_id=1,
                    file_name='1.png',
                    segments_info=[
                        dict(id=i, category_id=c, bbox=[0, y, 60, 20], area=1200, iscrowd=0)
                        for i, c, y in ((256, 3, 0), (7, 5, 20))
                    ],
                )
            ],
        )
        change(content, ids)
        for folder, name in (('images', '1.jpg'), ('ids', '1.png')):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(ids).save(tmp_path / folder / name)
        (tmp_path / 'panoptic.json').write_text(json.dumps(content))
        return PanopticFile(tmp_path / 'panoptic.json', tmp_path / 'images', tmp_path / 'ids')

    return write


def segment(**fields):
    return lambda content, ids: content['annotations'][0]['segments_info'][0].update(fields)


@pytest.mark.parametrize(
    'change, words',
    [
        (segment(id=9), 'other ids'),
        (segment(id=7), 'occurs twice'),
        (segment(category_id=9), 'unknown category'),
        (segment(bbox=[1, 2, 3]), 'bbox is not'),
        (segment(area=None), 'without an area'),
        (lambda content, ids: ids.fill(9), 'other ids'),
        (lambda content, ids: content['annotations'][0].update(image_id=4), 'unknown image'),
        (lambda content, ids: content['annotations'][0].pop('segments_info'), 'without segments'),
        (lambda content, ids: content['categories'][0].pop('isthing'), 'without isthing'),
        (lambda content, ids: content['images'][0].update(width=61), 'another size'),
    ],
)
def test_fault_of_panoptic_file(panoptic, faults, change, words):
    assert faults(panoptic(), thorough=True) == set()
    assert any(words in fault for _, fault in faults(panoptic(change)))
