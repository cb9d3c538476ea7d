"""Drawn objects for the study of transfer, docs/study.md: pictures to classify, scenes to search.

They are harder than the mini datasets of :mod:`.shapes`. An object has one of five outlines and one
of four textures; its colors say nothing. Strokes and textured scraps clutter the ground. The 20
classes of the pictures are the pairs of an outline and a texture, so that a classifier needs both
near and far context. The boxes and polygons of a scene tell the outlines, its map the textures.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .shapes import (
    Scene,
    add_noise,
    bounding_box,
    draw_ground,
    draw_once,
    fill_polygon,
    is_recognizable,
    random_state,
    save_photograph,
    trace,
)

OUTLINES = ('disc', 'square', 'triangle', 'star', 'cross')
TEXTURES = ('plain', 'striped', 'checked', 'dotted')
CLASSES = tuple(f'{texture}_{outline}' for outline in OUTLINES for texture in TEXTURES)

PICTURE_SIZE = 48
SCENE_SIZE = 96
RADIUS = (12, 20)  # of an object, in pixels, in pictures and in scenes
NUM_PICTURES = {'train': 3000, 'val': 500}
NUM_SCENES = {'train': 240, 'val': 50}
# To be raised when a drawn pixel or a written byte changes: it is part of the cache's folder name.
VERSION = 1


def drawn_objects(root: str | Path | None = None, seed: int = 0) -> Path:
    """Return the dataset of drawn objects; it is drawn on first use.

    - ``pictures/{train,val}/CLASS/*.jpg``: pictures of 48x48 pixels, as in ImageNet.
    - ``scenes/{train,val}/*.jpg``: scenes of 96x96 pixels, in which objects have the same size in
      pixels as in the pictures.
    - ``scenes/{train,val}.json``: boxes and polygons of the scenes, as in COCO. The categories are
      the outlines.
    - ``scenes/{train,val}_maps/*.png``: semantic maps of the scenes. 0 to 3 are the textures, 4 is
      the ground.

    Args:
        root (str or Path, optional): Folder of the dataset. Default: a folder in focal_mm's cache.
        seed (int): Random seed; equal seeds give equal files. Default: 0.

    Returns:
        Path: The folder. It is complete, also when several processes ask for it at the same time.
    """
    return draw_once(root, f'drawn_objects-v{VERSION}-seed{seed}', lambda to: _write(to, seed))


def draw_picture(seed: int, split: str, index: int) -> np.ndarray:
    """Draw an object of class ``index % 20``, (48, 48, 3) uint8: part of a cluttered image.

    Args:
        seed (int): Random seed of the dataset.
        split (str): ``'train'`` or ``'val'``.
        index (int): Number of the picture in its split, from 0.
    """
    random = random_state(seed, split, index)
    image = _draw_clutter(random)
    label = index % len(CLASSES)
    center = random.uniform(PICTURE_SIZE / 2, SCENE_SIZE - PICTURE_SIZE / 2, 2)
    mask = _draw_outline(random, label // len(TEXTURES), center, random.uniform(*RADIUS))
    _paint(image, mask, random, label % len(TEXTURES))
    left, top = (center - PICTURE_SIZE / 2 + random.uniform(-5, 5, 2)).round().astype(int)
    left, top = np.clip([left, top], 0, SCENE_SIZE - PICTURE_SIZE)
    part = image[top : top + PICTURE_SIZE, left : left + PICTURE_SIZE]
    return add_noise(part, random)


def draw_objects(seed: int, split: str, index: int) -> Scene:
    """Draw a scene of a few objects, whose labels are indices in ``CLASSES``.

    Args:
        seed (int): Random seed of the dataset.
        split (str): ``'train'`` or ``'val'``.
        index (int): Number of the scene in its split, from 0.
    """
    # A scene must not be the surroundings of a picture.
    random = random_state(seed, split, index + 10**6)
    image = _draw_clutter(random)
    whole: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(random.randint(3, 7)):
        label = random.randint(len(CLASSES))
        outline, texture = divmod(label, len(TEXTURES))
        mask = _draw_outline(
            random, outline, random.uniform(12, SCENE_SIZE - 12, 2), random.uniform(*RADIUS)
        )
        left = [other & ~mask for other in masks]
        if all(is_recognizable(*pair) for pair in zip([*left, mask], [*whole, mask])):
            _paint(image, mask, random, texture)
            whole, masks, labels = [*whole, mask], [*left, mask], [*labels, label]
    nothing = np.zeros(image.shape[:2], bool)
    return Scene(add_noise(image, random), masks, labels, nothing, crowd_label=0)


def _draw_clutter(random: np.random.RandomState) -> np.ndarray:
    """Draw a ground with strokes and textured scraps, (H, W, 3)."""
    image = draw_ground(random, SCENE_SIZE)
    for _ in range(6):
        center = random.uniform(0, SCENE_SIZE, 2)
        angles = np.sort(random.uniform(0, 2 * np.pi, 6))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        scrap = fill_polygon(center + random.uniform(3, 8, (6, 1)) * around, SCENE_SIZE)
        _paint(image, scrap, random, random.randint(len(TEXTURES)), brightness=0.6)
    for _ in range(4):
        (x, y), (x2, y2) = random.randint(0, SCENE_SIZE, (2, 2)).tolist()
        cv2.line(image, (x, y), (x2, y2), random.randint(40, 161, 3).tolist(), random.randint(1, 3))
    return image


def _draw_outline(
    random: np.random.RandomState, label: int, center: np.ndarray, radius: float
) -> np.ndarray:
    """Return the pixels of a slightly rotated outline, (H, W) bool."""
    corners, radii = {
        'disc': (40, [1.0]),
        'square': (4, [1.0]),
        'triangle': (3, [1.0]),
        'star': (10, [1.0, 0.45]),
        'cross': (12, [1.0, 1.0, 0.45]),
    }[OUTLINES[label]]
    first = np.pi / 4 if OUTLINES[label] == 'square' else -np.pi / 2
    angles = first + 2 * np.pi * np.arange(corners) / corners
    if OUTLINES[label] == 'cross':  # the end of an arm is a little wider than a twelfth of a turn
        angles += np.tile([-0.06, 0.06, 0.0], 4)
    angles += random.uniform(-0.3, 0.3)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return fill_polygon(center + radius * np.resize(radii, corners)[:, None] * around, SCENE_SIZE)


def _paint(
    image: np.ndarray,
    mask: np.ndarray,
    random: np.random.RandomState,
    texture: int,
    brightness: float = 1.0,
) -> None:
    """Paint pixels of an image, in place, with a texture of a light and a dark random color."""
    hue = random.permutation([random.uniform(low, 1) for low in (0.75, 0.2, 0.0)])
    light, dark = 255 * brightness * hue, 60 * hue
    period, angle = random.uniform(6, 9), random.uniform(0, np.pi)
    y, x = np.nonzero(mask)
    # Along and across the texture, in periods.
    along = (x * np.cos(angle) + y * np.sin(angle)) / period + random.uniform()
    across = (y * np.cos(angle) - x * np.sin(angle)) / period + random.uniform()
    is_dark = {
        'plain': np.zeros(len(x), bool),
        'striped': along % 1 < 0.5,
        'checked': (along % 1 < 0.5) ^ (across % 1 < 0.5),
        'dotted': (along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.1,
    }[TEXTURES[texture]]
    image[mask] = np.where(is_dark[:, None], dark, light)


def _write(root: Path, seed: int) -> None:
    for split, count in NUM_PICTURES.items():
        for index in range(count):
            folder = root / 'pictures' / split / CLASSES[index % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            save_photograph(draw_picture(seed, split, index), folder / f'{index + 1:06}.jpg')
    for split, count in NUM_SCENES.items():
        _write_scenes(root / 'scenes', seed, split, count)


def _write_scenes(root: Path, seed: int, split: str, count: int) -> None:
    for folder in (root / split, root / f'{split}_maps'):
        folder.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        scene, name = draw_objects(seed, split, index), f'{index + 1:06}'
        save_photograph(scene.image, root / split / f'{name}.jpg')
        images.append(
            dict(id=index + 1, file_name=f'{name}.jpg', width=SCENE_SIZE, height=SCENE_SIZE)
        )
        semantic = np.full(scene.image.shape[:2], len(TEXTURES), np.uint8)
        for mask, label in zip(scene.masks, scene.labels):
            semantic[mask] = label % len(TEXTURES)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=index + 1,
                    category_id=label // len(TEXTURES) + 1,
                    iscrowd=0,
                    bbox=bounding_box(mask),
                    area=int(mask.sum()),
                    segmentation=[trace(mask)],
                )
            )
        Image.fromarray(semantic).save(root / f'{split}_maps' / f'{name}.png')
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(OUTLINES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / f'{split}.json').write_text(json.dumps(content))
