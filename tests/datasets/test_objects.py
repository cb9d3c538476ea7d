import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from focal_mm.datasets import drawn_objects, objects

pytestmark = pytest.mark.stock


@pytest.fixture(scope='module')
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, 'NUM_PICTURES', {'train': 40, 'val': 20})
        patch.setattr(objects, 'NUM_SCENES', {'train': 6, 'val': 3})
        yield


@pytest.fixture(scope='module')
def root(few, tmp_path_factory):
    return drawn_objects(tmp_path_factory.mktemp('objects') / 'drawn')


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob('*.*')
    }


def test_equal_seeds_give_equal_files_and_other_seeds_others(root, few, tmp_path):
    first, again, other = map(
        digests, (root, drawn_objects(tmp_path / 'again'), drawn_objects(tmp_path / 'other', 1))
    )
    assert first == again and first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_drawing_is_the_same_on_every_machine():
    picture, scene = objects.draw_picture(0, 'train', 7), objects.draw_objects(0, 'train', 7)
    assert hashlib.sha256(picture.tobytes()).hexdigest()[:16] == '4f8a33d7c6ca7b98'
    assert hashlib.sha256(scene.image.tobytes()).hexdigest()[:16] == '9be5ad006b31972c'


def test_every_class_has_pictures_in_both_parts(root):
    for part, count in (('train', 2), ('val', 1)):
        folders = list((root / 'pictures' / part).iterdir())
        assert {folder.name for folder in folders} == set(objects.CLASSES)
        assert all(len(list(folder.iterdir())) == count for folder in folders)
    image = np.asarray(Image.open(folders[0] / next(folders[0].iterdir())))
    assert image.shape == (48, 48, 3)


def test_texture_and_outline_tell_pictures_apart_and_colors_do_not():
    """The classes of one outline or texture differ less in their mean color than two pictures of
    one class.
    """
    pictures = np.stack([objects.draw_picture(0, 'train', index) for index in range(200)])
    colors = pictures[:, 20:28, 20:28].mean((1, 2)).reshape(10, 20, 3)
    assert colors.mean(0).std(0).max() < colors.std(0).mean()


def test_scenes_agree_with_boxes_masks_and_maps(root):
    for part, count in (('train', 6), ('val', 3)):
        coco = COCO(root / 'scenes' / f'{part}.json')
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(objects.OUTLINES)
        assert len(coco.getImgIds()) == count
        for index, image in enumerate(coco.loadImgs(coco.getImgIds())):
            scene = objects.draw_objects(0, part, index)
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
            outlines = [label // len(objects.TEXTURES) for label in scene.labels]
            assert [a['category_id'] - 1 for a in annotations] == outlines != []
            wanted = np.full((96, 96), len(objects.TEXTURES))
            for annotation, mask, label in zip(annotations, scene.masks, scene.labels):
                read = coco.annToMask(annotation).astype(bool)
                assert (read & mask).sum() / (read | mask).sum() > 0.9
                wanted[mask] = label % len(objects.TEXTURES)
            name = image['file_name'].replace('.jpg', '.png')
            semantic = np.asarray(Image.open(root / 'scenes' / f'{part}_maps' / name))
            assert np.array_equal(semantic, wanted)


def test_pictures_and_scenes_and_parts_are_different_drawings(root):
    content = json.loads((root / 'scenes' / 'train.json').read_text())
    assert content['images'][0]['file_name'] == '000001.jpg'
    train, val = (objects.draw_objects(0, part, 0).image for part in ('train', 'val'))
    assert not np.array_equal(train, val)
    picture = objects.draw_picture(0, 'train', 0)
    assert not any(
        np.array_equal(picture, train[y : y + 48, x : x + 48]) for y in range(48) for x in range(48)
    )
