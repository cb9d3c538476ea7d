import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from focal_mm.datasets import custom

pytestmark = pytest.mark.stock

VOC = (
    '<annotation><object><name>{}</name><bndbox><xmin>6</xmin><ymin>6</ymin>'
    '<xmax>25</xmax><ymax>15</ymax></bndbox></object></annotation>'
)


@pytest.fixture
def layouts(tmp_path):
    """Pictures in nested folders with the same two boxes in the layouts of YOLO and Pascal VOC."""
    yolo, voc = tmp_path / 'yolo', tmp_path / 'voc'
    for folder in (voc / 'JPEGImages', voc / 'Annotations', voc / 'ImageSets' / 'Main'):
        folder.mkdir(parents=True)
    for split in ('train', 'val'):
        for i, name in enumerate(('a 1', 'sub/ж')):
            image = yolo / 'images' / split / f'{name}.jpg'
            label = yolo / 'labels' / split / f'{name}.txt'
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (40, 20)).save(image)
            label.write_text(f'{i} {15 / 40} {10 / 20} {20 / 40} {10 / 20}\n')
            stem = f'{split}{i}'
            shutil.copy(image, voc / 'JPEGImages' / f'{stem}.jpg')
            (voc / 'Annotations' / f'{stem}.xml').write_text(VOC.format(['dog', 'кот'][i]))
        Image.new('RGB', (40, 20)).save(yolo / 'images' / split / 'empty.jpg')
        lines = [f'{split}0 1', f'{split}1 -1'] if split == 'val' else ['train0', 'train1']
        (voc / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(lines))
    data = dict(path='.', train='images/train', val='images/val', names={0: 'dog', 1: 'кот'})
    (yolo / 'data.yaml').write_text(yaml.safe_dump(data, allow_unicode=True))
    return yolo, voc


def both(train, val):
    return dict(train=list(train), val=list(val))


def test_coco_is_read_where_it_is(write_coco):
    file, folder, content = write_coco()
    for paths in ([file, folder], [folder, file]):
        found = custom.read_boxes(both(paths, paths), file.parent / 'out')['train']
        assert (found.file, found.images, found.content) == (file, folder, content)
        assert found.classes == ('dog', 'кот') and found.count() == dict(dog=2, кот=2)
        assert found.has_masks and len(found) == 4 and found.sizes[0] == (60, 40)


def test_names_may_be_relative_to_a_folder_above(write_coco):
    file, folder, _ = write_coco()
    paths = [file, folder / 'train set']
    assert custom.read_boxes(both(paths, paths), file)['train'].images == folder


def test_yolo_becomes_coco(layouts, tmp_path):
    yolo, _ = layouts
    folders = [[yolo / kind / split for kind in ('labels', 'images')] for split in ('train', 'val')]
    for splits in (both([yolo / 'data.yaml'], [yolo / 'data.yaml']), both(*folders)):
        found = custom.read_boxes(splits, tmp_path / 'out')
        train = found['train']
        assert train.file == tmp_path / 'out_train.json'
        assert json.loads(train.file.read_text()) == train.content
        assert [one['file_name'] for one in train.content['images']] == [
            'a 1.jpg',
            'empty.jpg',
            'sub/ж.jpg',
        ]
        assert [one['bbox'] for one in train.content['annotations']] == [[5, 5, 20, 10]] * 2
        assert [one['image_id'] for one in train.content['annotations']] == [1, 3]
        assert train.classes == found['val'].classes == ('dog', 'кот')


def test_polygons_of_yolo_become_masks(layouts, tmp_path):
    yolo, _ = layouts
    (yolo / 'labels' / 'train' / 'a 1.txt').write_text(
        '1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n'
    )
    yaml = yolo / 'data.yaml'
    found = custom.read_boxes(both([yaml], [yaml]), tmp_path / 'out')['train']
    mask = found.content['annotations'][0]
    assert mask['bbox'] == [10, 5, 20, 10] and mask['area'] == pytest.approx(200, abs=40)
    assert np.reshape(mask['segmentation'], (-1, 2)).min(0).tolist() == [10, 5]


def test_pascal_voc_becomes_coco(layouts, tmp_path):
    _, voc = layouts
    lists = [voc / 'ImageSets' / 'Main' / f'{split}.txt' for split in ('train', 'val')]
    found = custom.read_boxes(both(lists[:1], lists[1:]), tmp_path / 'out')
    assert [len(one) for one in found.values()] == [2, 1]
    assert found['train'].classes == found['val'].classes == ('dog', 'кот')
    assert found['train'].content['annotations'][1]['bbox'] == [5, 5, 20, 10]
    assert len(custom.read_boxes(both([voc], [voc]), tmp_path / 'all')['train']) == 4


def test_converted_file_is_not_overwritten(layouts, tmp_path):
    yolo, _ = layouts
    splits = both([yolo / 'data.yaml'], [yolo / 'data.yaml'])
    (tmp_path / 'out_train.json').write_text('mine')
    with pytest.raises(FileExistsError, match='out_train.json exists'):
        custom.read_boxes(splits, tmp_path / 'out')


@pytest.mark.parametrize(
    'label, message',
    [
        ('7 0.5 0.5 0.1 0.1', 'a 1.txt has class 7, and there are 2 names'),
        ('0 0.5 0.5', 'a 1.txt: Invalid YOLO annotation line'),
        ('0 nan 0.5 0.1 0.1', 'a 1.txt: .*finite'),
        ('dog 0.5 0.5 0.1 0.1', 'a 1.txt: .*whole number'),
    ],
)
def test_fault_of_a_label_file_names_it(layouts, tmp_path, label, message):
    yolo, _ = layouts
    (yolo / 'labels' / 'train' / 'a 1.txt').write_text(label)
    with pytest.raises(ValueError, match=message):
        custom.read_boxes(both([yolo / 'data.yaml'], [yolo / 'data.yaml']), tmp_path / 'out')


def test_broken_xml_is_named(layouts, tmp_path):
    _, voc = layouts
    (voc / 'Annotations' / 'train1.xml').write_text('<annotation>')
    with pytest.raises(ValueError, match='train1.xml is no XML'):
        custom.read_boxes(both([voc], [voc]), tmp_path / 'out')


def test_missing_library_is_said_in_a_line(layouts, tmp_path, monkeypatch):
    yolo, _ = layouts
    monkeypatch.setitem(__import__('sys').modules, 'supervision', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "focal-mm\[datasets\]"'):
        custom.read_boxes(both([yolo / 'data.yaml'], [yolo / 'data.yaml']), tmp_path / 'out')


def test_missing_parts_are_named(write_coco, tmp_path):
    file, folder, _ = write_coco()
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match='no.json: no such file'):
        custom.read_boxes(both([tmp_path / 'no.json'], [file]), file)
    with pytest.raises(ValueError, match='--val .*empty: give a COCO file'):
        custom.read_boxes(both([file, folder], [empty]), file)
    with pytest.raises(FileNotFoundError, match='фото 1.jpg, which .*train.json names'):
        custom.read_boxes(both([file, empty], [file, folder]), file)


def test_classes_of_both_sets_must_be_the_same(write_coco, tmp_path):
    found = custom.read_boxes(both(write_coco()[:2], write_coco('val')[:2]), tmp_path / 'out')
    assert custom.common_classes(found, None) == ('dog', 'кот')
    assert custom.common_classes(found, ['кот']) == ('кот',)
    with pytest.raises(ValueError, match="no category 'dgo'; did you mean 'dog'?"):
        custom.common_classes(found, ['dgo'])
    found['val'].content['categories'].reverse()
    with pytest.raises(ValueError, match='in different orders'):
        custom.common_classes(found, None)
    found['val'].content['categories'].pop()
    with pytest.raises(ValueError, match="different categories .*'dog' is in one"):
        custom.common_classes(found, None)


@pytest.mark.parametrize('end', ['.png', '_mask.png'])
def test_label_maps_in_any_order(write_maps, end):
    images, maps = write_maps(end=end)
    for paths in ([images, maps], [maps, images]):
        found = custom.read_label_maps('train', paths)
        assert (found.images, found.maps, found.suffixes) == (images, maps, ('.jpg', end))
        assert found.sizes == [(32, 24)] * 3 and found.values == {0: 3, 1: 3, 2: 3, 255: 3}


def test_label_maps_of_other_names_or_colors_are_refused(write_maps):
    images, maps = write_maps()
    first = min(maps.rglob('*.png'))
    Image.new('RGB', (32, 24)).save(first)
    with pytest.raises(ValueError, match='train 0.png: label map of colors'):
        custom.read_label_maps('train', [images, maps])
    for path in list(maps.rglob('*.png')):
        path.rename(path.with_name(f'x{path.name}'))
    with pytest.raises(FileNotFoundError, match='has no label map in'):
        custom.read_label_maps('train', [images, maps])


def test_names_say_whether_zero_is_a_class(write_maps):
    sets = dict(train=custom.read_label_maps('train', list(write_maps())))
    assert custom.name_labels(sets, None) == (('label 0', 'label 1', 'label 2'), False)
    assert custom.name_labels(sets, ['a', 'b', 'c', 'd']) == (('a', 'b', 'c', 'd'), False)
    assert custom.name_labels(sets, ['a', 'b']) == (('a', 'b'), True)
    with pytest.raises(ValueError, match='labels go up to 2, and --classes has 1 names'):
        custom.name_labels(sets, ['a'])


def test_masks_of_0_and_255_are_refused(write_maps):
    sets = dict(train=custom.read_label_maps('train', list(write_maps(values=(0, 255)))))
    with pytest.raises(ValueError, match='no value but 0 and 255, which is ignored'):
        custom.name_labels(sets, None)
