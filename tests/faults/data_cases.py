"""Faults of annotations and pictures, which ``focal-mm doctor --data`` finds before training.

One line in a table below is one case. It is survived if the command says more of the data with the
fault than of the data without it.
"""

import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from command import Command
from fault import Outcome, case
from PIL import Image

COCO, MAPS, FOLDERS = 'COCO files', 'Label maps', 'Folders of classes'
DETECTOR = """
_base_ = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
data = dict(
    data_root={root!r},
    ann_file='train.json',
    data_prefix=dict(img='pictures'),
    metainfo=dict(classes=('cat', 'dog')),
)
train_dataloader = dict(dataset=data)
other = dict(data, ann_file='val.json')
val_dataloader = dict(dataset=other)
test_dataloader = dict(dataset=other)
val_evaluator = dict(ann_file={root!r} + '/val.json')
test_evaluator = dict(ann_file={root!r} + '/val.json')
model = dict(roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))
"""
SEGMENTOR = """
_base_ = 'focal_mm::upernet/focalnet_t.py'
data = dict(
    type='BaseSegDataset',
    data_root={root!r},
    reduce_zero_label=False,
    metainfo=dict(classes=('cat', 'dog', 'wall')),
    data_prefix=dict(img_path='pictures', seg_map_path='maps'),
)
train_dataloader = dict(dataset=data)
other = dict(data, data_prefix=dict(img_path='others', seg_map_path='others_maps'))
val_dataloader = dict(dataset=other)
test_dataloader = dict(dataset=other)
model = dict(decode_head=dict(num_classes=3), auxiliary_head=dict(num_classes=3))
"""
CLASSIFIER = """
_base_ = 'focal_mm::imagenet/focalnet_t.py'
steps = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(_delete_=True, type='CustomDataset', data_root={root!r}, pipeline=steps)
train_dataloader = dict(dataset=dict(data, data_prefix='train'))
val_dataloader = dict(dataset=dict(data, data_prefix='val'))
test_dataloader = val_dataloader
model = dict(head=dict(num_classes=2))
data_preprocessor = dict(num_classes=2)
"""


def picture(path: Path, number: int, mode: str = 'RGB', size: tuple[int, int] = (60, 40)) -> None:
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def make_coco(root: Path) -> dict:
    """Write two sets of four pictures; return the content of the first file."""
    for split, start in (('val', 11), ('train', 1)):
        content: dict = dict(
            images=[],
            annotations=[],
            categories=[dict(id=7, name='cat'), dict(id=30, name='dog')],
        )
        for i in range(start, start + 4):
            picture(root / 'pictures' / f'{i}.jpg', i)
            content['images'].append(dict(id=i, file_name=f'{i}.jpg', width=60, height=40))
            content['annotations'].append(
                dict(
                    id=i,
                    image_id=i,
                    category_id=(7, 30)[i % 2],
                    bbox=[5, 5, 20, 10],
                    area=200,
                    iscrowd=0,
                    segmentation=[[5, 5, 25, 5, 25, 15, 5, 15]],
                )
            )
        (root / f'{split}.json').write_text(json.dumps(content))
    return content


def make_maps(root: Path) -> None:
    """Write two sets of four pictures with label maps."""
    for pictures, maps, start in (('pictures', 'maps', 1), ('others', 'others_maps', 11)):
        for i in range(start, start + 4):
            picture(root / pictures / f'{i}.jpg', i)
            write_map(root / maps / f'{i}.png', np.resize([0, 1, 2, 255], (40, 60)))


def write_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def make_folders(root: Path) -> None:
    """Write two sets of two classes."""
    for split in ('train', 'val'):
        for i, name in enumerate(('cat', 'dog')):
            for number in range(3):
                picture(root / split / name / f'{number}.jpg', 100 * len(split) + 10 * i + number)


def look(folder: Path, config: str, thorough: bool) -> list[str]:
    """Return the lines in which ``focal-mm doctor --data`` names a fault."""
    path = folder / 'config.py'
    path.write_text(config.format(root=str(folder)))
    words = ('--thorough',) if thorough else ()
    ended = Command(folder / 'doctor.log', 'doctor', '--data', path, *words).wait()
    assert 'Traceback' not in ended.said, ended.said
    lines = ended.said.replace(f'{folder}/', '').splitlines()
    return [line for line in lines if line.startswith(('error: ', 'warning: '))] or (
        [lines[-1]] if ended.status == 2 else []
    )


@cache
def usual(make: Callable, config: str, thorough: bool) -> list[str]:
    """Return what is said of the data without a fault."""
    folder = Path(os.environ['FAULTS_FOLDER'], f'usual_{make.__name__}_{thorough}')
    folder.mkdir()
    make(folder)
    return look(folder, config, thorough)


def found(make: Callable, config: str, change: Callable, thorough: bool) -> Callable:
    """Return a case: data is made, changed and looked at."""

    def run(folder: Path) -> Outcome:
        content = make(folder)
        change(folder if content is None else content)
        if content is not None:
            (folder / 'train.json').write_text(json.dumps(content))
        whole = make_coco if config == DETECTOR else make
        lines = [
            line
            for line in look(folder, config, thorough)
            if line not in usual(whole, config, thorough)
        ]
        return Outcome(lines[0] if lines else 'not a word', 'nothing', bool(lines))

    return run


def one(**fields: object) -> Callable:
    """Return what changes an annotation."""
    return lambda content: content['annotations'][1].update(fields)


def without(key: str) -> Callable:
    """Return what takes a key from an annotation."""
    return lambda content: content['annotations'][1].pop(key)


def image(**fields: object) -> Callable:
    """Return what changes an image."""
    return lambda content: content['images'][1].update(fields)


COCO_FAULTS = {
    'a category that is not listed': one(category_id=99),
    'a box that is NaN': one(bbox=[math.nan, 5, 20, 10]),
    'an infinite box': one(bbox=[5, 5, math.inf, 10]),
    'a box of negative width': one(bbox=[5, 5, -20, 10]),
    'an empty box': one(bbox=[5, 5, 0, 10]),
    'a box outside the picture': one(bbox=[70, 5, 20, 10]),
    'a box of three numbers': one(bbox=[5, 5, 20]),
    'no box': without('bbox'),
    'an image id that occurs twice': image(id=1),
    'an annotation id that occurs twice': one(id=1),
    'an annotation of an unknown image': one(image_id=99),
    'wrong width and height': image(width=80, height=80),
    'no width': lambda content: content['images'][1].pop('width'),
    'everything iscrowd': lambda content: [
        each.update(iscrowd=1) for each in content['annotations']
    ],
    'a polygon of two points': one(segmentation=[[1, 1, 9, 9]]),
    'a polygon with NaN': one(segmentation=[[1, 1, math.nan, 9, 5, 5]]),
    'an empty segmentation': one(segmentation=[]),
    'no segmentation': without('segmentation'),
    'a mask of the wrong size': one(segmentation=dict(size=[9, 9], counts=[81])),
    'no area': without('area'),
    'a class without examples': lambda content: [
        each.update(category_id=7) for each in content['annotations']
    ],
    'a missing picture': image(file_name='no.jpg'),
    'a picture that is in validation, too': image(file_name='11.jpg'),
    'no annotations': lambda content: content['annotations'].clear(),
    'no list of categories': lambda content: content.pop('categories'),
    'a box under a pixel after resizing': one(bbox=[5, 5, 0.01, 0.01], area=0.0001),
}
for fault, change in COCO_FAULTS.items():
    case(COCO, fault, fault == 'a polygon with NaN')(found(make_coco, DETECTOR, change, False))


def coco_picture(act: Callable[[Path], object]) -> Callable:
    """Return what makes a COCO set and changes a picture of it."""

    def make(root: Path) -> None:
        make_coco(root)
        act(root / 'pictures' / '2.jpg')

    return make


def turned(path: Path) -> None:
    """Give a picture the EXIF note that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def cut(path: Path) -> None:
    """Cut a file off in its middle."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


PICTURE_FAULTS = {
    'a picture smaller than annotated': lambda path: picture(path, 2, size=(30, 20)),
    'a picture turned by its EXIF': turned,
    'a picture that is cut off': cut,
    'a picture of 0 bytes': lambda path: path.write_bytes(b''),
    'a page of HTML in place of a picture': lambda path: path.write_text('<html>404</html>'),
    'a picture in CMYK': lambda path: picture(path, 2, 'CMYK'),
    'a picture of 16 bits': lambda path: Image.fromarray(np.full((40, 60), 4000, np.uint16)).save(
        path, 'png'
    ),
    'a picture with a palette': lambda path: Image.new('P', (60, 40)).save(path, 'png'),
    'a picture with transparency': lambda path: Image.new('RGBA', (60, 40)).save(path, 'png'),
}
for fault, act in PICTURE_FAULTS.items():
    case(COCO, fault)(found(coco_picture(act), DETECTOR, lambda root: None, True))


def label_map(values: object, path: str = 'maps/2.png') -> Callable[[Path], None]:
    """Return what writes another label map."""
    return lambda root: write_map(root / path, np.resize(values, (40, 60)))


MAP_FAULTS = {
    'a label map of another size': lambda root: write_map(root / 'maps/2.png', np.zeros((9, 9))),
    'labels beyond the classes': label_map([0, 1, 2, 7]),
    'a label map in color': lambda root: picture(root / 'maps/2.png', 2),
    'a label map as JPEG': lambda root: [
        picture(root / 'maps/2.jpg', 2, 'L'),
        (root / 'maps/2.jpg').replace(root / 'maps/2.png'),
    ],
    'a label map of 0 bytes': lambda root: (root / 'maps/2.png').write_bytes(b''),
    'a label map that is cut off': lambda root: cut(root / 'maps/2.png'),
    'a missing label map': lambda root: (root / 'maps/2.png').unlink(),
    'a label map that is ignored everywhere': label_map([255]),
    'a picture that is cut off': lambda root: cut(root / 'pictures/2.jpg'),
    'a class without a pixel': lambda root: [
        label_map([0, 1], f'maps/{number}.png')(root) for number in range(1, 5)
    ],
    'a picture that is in validation, too': lambda root: [
        (root / 'others/2.jpg').write_bytes((root / 'pictures/2.jpg').read_bytes()),
        write_map(root / 'others_maps/2.png', np.zeros((40, 60))),
    ],
}
for fault, change in MAP_FAULTS.items():
    case(MAPS, fault)(found(make_maps, SEGMENTOR, change, True))

FOLDER_FAULTS = {
    'a class without pictures': lambda root: [
        path.unlink() for path in (root / 'train/cat').iterdir()
    ],
    'a picture of 0 bytes': lambda root: (root / 'train/cat/1.jpg').write_bytes(b''),
    'a picture that is cut off': lambda root: cut(root / 'train/cat/1.jpg'),
    'a class more than the model has': lambda root: picture(root / 'train/cow/1.jpg', 5),
    'a class that validation lacks': lambda root: (root / 'val/dog').rename(root / 'val/cow'),
    'a picture that is in validation, too': lambda root: (root / 'val/cat/1.jpg').write_bytes(
        (root / 'train/cat/1.jpg').read_bytes()
    ),
}
for fault, change in FOLDER_FAULTS.items():
    case(FOLDERS, fault)(found(make_folders, CLASSIFIER, change, True))
