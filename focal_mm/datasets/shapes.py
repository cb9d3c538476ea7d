"""Mini datasets of drawn shapes, in the layouts of COCO, ADE20K and ImageNet.

With them every detector, segmentor and classifier trains, evaluates and draws on a CPU in minutes,
without a download. Bright circles, squares and triangles, whose colors hint at the shape, overlap
on a dull ground. Some images have a crowd of small shapes, and some have no objects.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..cache import cache_dir
from ..compat.panopticapi import id2rgb

SHAPES = ('circle', 'square', 'triangle')
GROUND = 'ground'
KEYPOINTS = ('top', 'right', 'bottom', 'left')
PALETTE = [(66, 133, 244), (234, 67, 53), (52, 168, 83), (160, 160, 160)]

IMAGE_SIZE = 128
NUM_IMAGES = {'train': 288, 'val': 32}
# To be raised when a drawn pixel or a written byte changes: it is part of the cache's folder name.
VERSION = 3


@dataclass
class Scene:
    """A drawn image and its annotations.

    Attributes:
        image (ndarray): RGB pixels, (H, W, 3) uint8.
        masks (list[ndarray]): Visible pixels of each object, (H, W) bool; no two masks overlap.
        labels (list[int]): Index in ``SHAPES`` of each object.
        crowd (ndarray): Region of the crowd, (H, W) bool; all False if there is none.
        crowd_label (int): Index in ``SHAPES`` of the crowd's members.
    """

    image: np.ndarray
    masks: list[np.ndarray]
    labels: list[int]
    crowd: np.ndarray
    crowd_label: int


def mini_coco(root: str | Path | None = None, seed: int = 0) -> Path:
    """Return the mini dataset in COCO's layout; it is drawn on first use.

    - ``{train,val}2017/*.jpg``: the images.
    - ``annotations/instances_{train,val}2017.json``: boxes and polygons, and crowds as run lengths.
    - ``stuffthingmaps/{train,val}2017/*.png``: semantic maps, for heads that need them. 0 to 2 are
      the shapes, 255 is everything else.
    - ``annotations/panoptic_{train,val}2017.json`` and a folder of maps with this name: panoptic
      segmentation. The ground is the one kind of stuff.
    - ``annotations/person_keypoints_{train,val}2017.json``: the highest, rightmost, lowest and
      leftmost pixel of every shape.

    Args:
        root (str or Path, optional): Folder of the dataset. Default: a folder in focal_mm's cache.
        seed (int): Random seed; equal seeds give equal files. Default: 0.

    Returns:
        Path: The folder. It is complete, also when several processes ask for it at the same time.
    """
    return draw_once(root, f'mini_coco-v{VERSION}-seed{seed}', lambda to: _write_coco(to, seed))


def mini_ade20k(root: str | Path | None = None, seed: int = 0) -> Path:
    """Return the mini dataset in ADE20K's layout; it is drawn on first use.

    - ``images/{training,validation}/*.jpg``: the images.
    - ``annotations/{training,validation}/*.png``: 1 to 3 are the shapes, 4 is the ground, and 0 is
      unlabeled, for a crowd.

    Args:
        root (str or Path, optional): Folder of the dataset. Default: a folder in focal_mm's cache.
        seed (int): Random seed; equal seeds give equal files. Default: 0.

    Returns:
        Path: The folder. It is complete, also when several processes ask for it at the same time.
    """
    return draw_once(root, f'mini_ade20k-v{VERSION}-seed{seed}', lambda to: _write_ade20k(to, seed))


def mini_imagenet(root: str | Path | None = None, seed: int = 0) -> Path:
    """Return the mini dataset in ImageNet's layout; it is drawn on first use.

    ``{train,val}/{circle,square,triangle}/*.jpg``: images of one shape.

    Args:
        root (str or Path, optional): Folder of the dataset. Default: a folder in focal_mm's cache.
        seed (int): Random seed; equal seeds give equal files. Default: 0.

    Returns:
        Path: The folder. It is complete, also when several processes ask for it at the same time.
    """
    return draw_once(
        root, f'mini_imagenet-v{VERSION}-seed{seed}', lambda to: _write_imagenet(to, seed)
    )


def draw_once(root: str | Path | None, name: str, write: Callable[[Path], None]) -> Path:
    """Return a folder that ``write`` fills on first use.

    Args:
        root (str, Path or None): The folder. None: ``name`` in focal_mm's cache.
        name (str): Name of the folder in the cache.
        write (callable): Writes the files into a folder that it is given.

    Returns:
        Path: The folder. It is complete, also when several processes ask for it at the same time.
    """
    root = Path(root) if root else cache_dir() / name
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        write(draft)
        draft.chmod(0o755)  # mkdtemp's folders are private
        os.rename(draft, root)
    except OSError:
        if not root.is_dir():  # otherwise another process has drawn the same images
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw one image.

    The last of every 16 images is empty, and the fourth of every 8 has a crowd.

    Args:
        seed (int): Random seed of the dataset.
        split (str): ``'train'`` or ``'val'``.
        index (int): Number of the image in its split, from 0.
    """
    random = random_state(seed, split, index)
    image = draw_ground(random)
    crowd, crowd_label = np.zeros(image.shape[:2], bool), random.randint(len(SHAPES))
    if index % 8 == 3:
        crowd = _draw_crowd(image, random, crowd_label)
    whole: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(0 if index % 16 == 15 else random.randint(3, 8)):
        label = random.randint(len(SHAPES))
        mask = _shape(
            random,
            label,
            center=random.uniform(16, IMAGE_SIZE - 16, 2),
            radius=random.uniform(18, 32),
        )
        left = [other & ~mask for other in masks]
        if not all(is_recognizable(*pair) for pair in zip([*left, mask], [*whole, mask])):
            continue
        image[mask] = _color(random, label)
        whole, masks, labels = [*whole, mask], [*left, mask], [*labels, label]
        crowd &= ~mask
    return Scene(add_noise(image, random), masks, labels, crowd, crowd_label)


def random_state(seed: int, split: str, index: int) -> np.random.RandomState:
    """Return the random numbers of one image."""
    # numpy guarantees the numbers of RandomState for all versions, but not those of Generator.
    return np.random.RandomState([seed, list(NUM_IMAGES).index(split), index])


def add_noise(image: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Return an image with noise, as uint8."""
    return (image + random.randint(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)


def draw_ground(random: np.random.RandomState, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw soft blotches around one dull color, (size, size, 3)."""
    tint = random.randint(70, 130) + random.randint(-10, 11, 3)
    blotches = Image.fromarray((tint + random.randint(-15, 16, (5, 5, 3))).astype(np.uint8))
    return np.array(blotches.resize((size, size), Image.Resampling.BICUBIC))


def _color(random: np.random.RandomState, label: int) -> np.ndarray:
    """Draw a bright color whose strongest channel depends on the shape, as in real objects."""
    color = random.randint(0, 90, 3)
    color[(2, 0, 1)[label]] = random.randint(205, 256)
    return color


def _shape(
    random: np.random.RandomState, label: int, center: np.ndarray, radius: float
) -> np.ndarray:
    """Return the pixels of a slightly rotated shape, (H, W) bool."""
    corners, first = ((40, 0), (4, np.pi / 4), (3, -np.pi / 2))[label]
    angles = random.uniform(-0.3, 0.3) + first + 2 * np.pi * np.arange(corners) / corners
    return fill_polygon(center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def fill_polygon(corners: np.ndarray, size: int = IMAGE_SIZE) -> np.ndarray:
    """Return the pixels of a polygon, (size, size) bool, from its corners' x and y, (N, 2)."""
    mask = Image.new('1', (size, size))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in corners.round().tolist()], fill=1)
    return np.array(mask)


def _draw_crowd(image: np.ndarray, random: np.random.RandomState, label: int) -> np.ndarray:
    """Draw small shapes close together and return their region, (H, W) bool."""
    region = np.zeros(image.shape[:2], np.uint8)
    middle = random.uniform(32, IMAGE_SIZE - 32, 2)
    for _ in range(14):
        mask = _shape(random, label, middle + random.uniform(-20, 20, 2), radius=5)
        image[mask] = _color(random, label)
        region[mask] = 1
    return cv2.dilate(region, np.ones((5, 5), np.uint8)).astype(bool)


def is_recognizable(visible: np.ndarray, whole: np.ndarray) -> bool:
    """True if most of a shape is visible, in one piece without holes, so that one polygon fits."""
    pieces, _ = cv2.findContours(visible.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return len(pieces) == 1 and visible.sum() > max(0.6 * whole.sum(), 200)


def trace(mask: np.ndarray) -> list[float]:
    """Return the outline of a mask in one piece as COCO's x1, y1, x2, y2, ... in pixels."""
    # A contour runs through the centers of pixels. On a finer grid this is closer to the edge.
    fine = 4
    enlarged = np.kron(mask, np.ones((fine, fine), np.uint8)).astype(np.uint8)
    (contour,), _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = cv2.approxPolyDP(contour, epsilon=0.5 * fine, closed=True)
    return ((contour.reshape(-1) + 0.5) / fine).tolist()


def bounding_box(mask: np.ndarray) -> list[int]:
    """Return COCO's x, y, width, height in pixels."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return [
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    ]


def _run_lengths(mask: np.ndarray) -> dict:
    """Return COCO's uncompressed run-length encoding: column by column, zeros first."""
    pixels = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff([0, *changes, mask.size])
    return dict(counts=counts.tolist(), size=list(mask.shape))


def _write_coco(root: Path, seed: int) -> None:
    (root / 'annotations').mkdir()
    categories = [
        dict(id=i + 1, name=name, supercategory='shape', isthing=1) for i, name in enumerate(SHAPES)
    ]
    ground = dict(id=len(SHAPES) + 1, name=GROUND, supercategory='ground', isthing=0)
    for split, count in NUM_IMAGES.items():
        images = root / f'{split}2017'
        semantic_maps = root / 'stuffthingmaps' / f'{split}2017'
        panoptic_maps = root / 'annotations' / f'panoptic_{split}2017'
        for folder in (images, semantic_maps, panoptic_maps):
            folder.mkdir(parents=True)
        annotations, keypoints, panoptic = [], [], []
        for index in range(count):
            scene = draw_scene(seed, split, index)
            name = f'{index + 1:012}'
            save_photograph(scene.image, images / f'{name}.jpg')
            semantic = np.full(scene.image.shape[:2], 255, np.uint8)
            for mask, label in zip(scene.masks, scene.labels):
                semantic[mask] = label
                annotations.append(
                    dict(
                        image_id=index + 1,
                        category_id=label + 1,
                        iscrowd=0,
                        bbox=bounding_box(mask),
                        area=int(mask.sum()),
                        segmentation=[trace(mask)],
                    )
                )
                keypoints.append(_extreme_points(mask))
            if scene.crowd.any():
                annotations.append(
                    dict(
                        image_id=index + 1,
                        category_id=scene.crowd_label + 1,
                        iscrowd=1,
                        bbox=bounding_box(scene.crowd),
                        area=int(scene.crowd.sum()),
                        segmentation=_run_lengths(scene.crowd),
                    )
                )
                keypoints.append([])
            Image.fromarray(semantic).save(semantic_maps / f'{name}.png')
            ids, segments = _segments(scene)
            Image.fromarray(id2rgb(ids)).save(panoptic_maps / f'{name}.png')
            panoptic.append(
                dict(image_id=index + 1, file_name=f'{name}.png', segments_info=segments)
            )
        common = dict(
            info=dict(description='focal_mm mini dataset of shapes', version=VERSION, seed=seed),
            licenses=[],
            images=[
                dict(id=i + 1, file_name=f'{i + 1:012}.jpg', width=IMAGE_SIZE, height=IMAGE_SIZE)
                for i in range(count)
            ],
        )
        instances = [dict(id=i + 1, **fields) for i, fields in enumerate(annotations)]
        kind_of_all = dict(
            id=1, name='shape', supercategory='shape', keypoints=KEYPOINTS, skeleton=[]
        )
        people = [
            dict(fields, category_id=1, num_keypoints=len(KEYPOINTS), keypoints=corners)
            for fields, corners in zip(instances, keypoints)
            if corners
        ]
        for kind, content in (
            ('person_keypoints', dict(categories=[kind_of_all], annotations=people)),
            ('instances', dict(categories=categories, annotations=instances)),
            ('panoptic', dict(categories=[*categories, ground], annotations=panoptic)),
        ):
            path = root / 'annotations' / f'{kind}_{split}2017.json'
            path.write_text(json.dumps(dict(common, **content)))


def _extreme_points(mask: np.ndarray) -> list[int]:
    """Return COCO's x, y and 2 (visible) of each of ``KEYPOINTS``."""
    rows, columns = np.nonzero(mask)
    pixels = (rows.argmin(), columns.argmax(), rows.argmax(), columns.argmin())
    return [int(value) for pixel in pixels for value in (columns[pixel], rows[pixel], 2)]


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """Return the panoptic map of segment ids, (H, W), and COCO's ``segments_info``."""
    ground = ~np.any([*scene.masks, scene.crowd], axis=0)
    parts = [
        *zip(scene.masks, scene.labels),
        (scene.crowd, scene.crowd_label),
        (ground, len(SHAPES)),
    ]
    ids, segments = np.zeros(ground.shape, int), []
    for number, (mask, label) in enumerate(parts, start=1):
        if mask.any():
            ids[mask] = number * 100_000  # ids use three bytes, as in COCO
            segments.append(
                dict(
                    id=number * 100_000,
                    category_id=label + 1,
                    iscrowd=int(mask is scene.crowd),
                    bbox=bounding_box(mask),
                    area=int(mask.sum()),
                )
            )
    return ids, segments


def _write_ade20k(root: Path, seed: int) -> None:
    for (split, count), folder in zip(NUM_IMAGES.items(), ('training', 'validation')):
        (root / 'images' / folder).mkdir(parents=True)
        (root / 'annotations' / folder).mkdir(parents=True)
        for index in range(count):
            scene = draw_scene(seed, split, index)
            labels = np.full(scene.image.shape[:2], len(SHAPES) + 1, np.uint8)
            labels[scene.crowd] = 0
            for mask, label in zip(scene.masks, scene.labels):
                labels[mask] = label + 1
            name = f'ADE_{split}_{index + 1:08}'
            save_photograph(scene.image, root / 'images' / folder / f'{name}.jpg')
            Image.fromarray(labels).save(root / 'annotations' / folder / f'{name}.png')


def _write_imagenet(root: Path, seed: int) -> None:
    for split, count in NUM_IMAGES.items():
        for index in range(count):
            label = index % len(SHAPES)
            random = random_state(seed, split, index)
            image = draw_ground(random)
            mask = _shape(
                random,
                label,
                center=random.uniform(44, IMAGE_SIZE - 44, 2),
                radius=random.uniform(24, 40),
            )
            image[mask] = _color(random, label)
            path = root / split / SHAPES[label] / f'{split}_{index + 1:08}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            save_photograph(add_noise(image, random), path)


def save_photograph(image: np.ndarray, path: Path) -> None:
    """Write an image as JPEG with little loss."""
    Image.fromarray(image).save(path, quality=95, subsampling=0)
