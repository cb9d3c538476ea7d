"""Parts of COCO and ADE20K with 1 % or 10 % of the images, for comparisons in hours on one GPU.

The images of a part are those whose names, such as ``000000262145``, have the smallest sha256. So
the part is the same for everybody, without a list to store and in whatever order the annotations
are; its images are a random sample; and the larger part contains the smaller one. The parts of
papers on semi-supervised detection are others: they depend on the order of the annotations and on
a random number generator.

A part is a new file beside the original annotations. No image is copied, and no file is changed.
"""

import copy
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.request import urlopen
from zipfile import BadZipFile, ZipFile

import rich.progress
from mmengine.config import Config, ConfigDict
from rich.console import Console

from ..cache import whole_file
from ..config import datasets_of, dicts, type_name

PARTS = {'1pct': 0.01, '10pct': 0.1}
COCO_ADDRESS = 'http://images.cocodataset.org/annotations/annotations_trainval2017.zip'
ADE20K_ADDRESS = 'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip'
_LARGEST_PICTURE = 100_000_000  # bytes
_KINDS = ('instances', 'panoptic', 'person_keypoints')  # of COCO's annotations
_COCO_FILE = re.compile(rf'\b({"|".join(_KINDS)})_(train|val)2017\.json$')
_PART_FILE = re.compile(rf'_({"|".join(PARTS)})\.(json|txt)$')


def choose(names: Iterable[str], part: str) -> set[str]:
    """Return the names of the images of a part.

    Args:
        names (iterable of str): Names of all images, without folder and suffix.
        part (str): ``'1pct'`` or ``'10pct'``.
    """
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ranked[: max(1, round(PARTS[part] * len(ranked)))])


def write_coco_part(root: Path, part: str) -> list[str]:
    """Write a part of COCO 2017 beside its annotations.

    From each ``annotations/{instances,panoptic,person_keypoints}_{train,val}2017.json`` that is
    there, a file with ``_PART`` at the end of its name is made. Annotations of instances that are
    missing are downloaded. So are missing images: those of the training part, and all of val2017,
    because models are tested on all of it.

    Args:
        root (Path): COCO's folder, with ``annotations/``, ``train2017/`` and ``val2017/``.
        part (str): ``'1pct'`` or ``'10pct'``.

    Returns:
        list[str]: A line on each file of the part.

    Raises:
        FileNotFoundError: If a file is missing and can't be downloaded.
        FileExistsError: If a file of the part is there with other content.
        ValueError: If annotations can't be read, or a file can't be written.
    """
    folder, lines = root / 'annotations', []
    _extract(
        COCO_ADDRESS, root, '', [f'annotations/instances_{s}2017.json' for s in ('train', 'val')]
    )
    needed: dict[Path, list[dict]] = {}
    for split in ('train', 'val'):
        for path in (folder / f'{kind}_{split}2017.json' for kind in _KINDS):
            if not path.is_file():
                continue
            whole = _read(path)
            _require_names(path, whole['images'])
            chosen = choose((Path(image['file_name']).stem for image in whole['images']), part)
            images = [image for image in whole['images'] if Path(image['file_name']).stem in chosen]
            ids = {image['id'] for image in images}
            objects = [one for one in whole['annotations'] if one['image_id'] in ids]
            file = path.with_stem(f'{path.stem}_{part}')
            _write(file, json.dumps({**whole, 'images': images, 'annotations': objects}))
            lines.append(
                f'{file}: {len(images)} of {len(whole["images"])} images, '
                f'{len(objects)} annotations'
            )
            needed.setdefault(
                root / f'{split}2017', images if split == 'train' else whole['images']
            )
    for images_folder, images in needed.items():
        _download_images(images, images_folder)
    return lines


def write_ade20k_part(root: Path, part: str) -> list[str]:
    """Write ``training_PART.txt`` and ``validation_PART.txt``, the names of the images of a part.

    mmseg takes such a list as ``ann_file``. If folders are missing, ADE20K is downloaded.

    Args:
        root (Path): The folder ``ADEChallengeData2016``, with ``images/`` and ``annotations/``.
        part (str): ``'1pct'`` or ``'10pct'``.

    Returns:
        list[str]: A line on each file of the part.

    Raises:
        FileNotFoundError: If a folder is missing and can't be downloaded, or has no images.
        FileExistsError: If a file of the part is there with other content.
        ValueError: If a file can't be written.
    """
    splits, lines = ('training', 'validation'), []
    folders = [f'{kind}/{split}' for kind in ('images', 'annotations') for split in splits]
    _extract(ADE20K_ADDRESS, root, 'ADEChallengeData2016/', folders)
    for split in splits:
        images = root / 'images' / split
        names = sorted(path.stem for path in images.glob('*.jpg'))
        if not names:
            raise FileNotFoundError(f'{images} has no .jpg files; put the images of ADE20K there')
        chosen = sorted(choose(names, part))
        file = root / f'{split}_{part}.txt'
        _write(file, ''.join(f'{name}\n' for name in chosen))
        lines.append(f'{file}: {len(chosen)} of {len(names)} images')
    return lines


def use_part(cfg: Config, part: str) -> Config:
    """Return a config that trains on a part of COCO or ADE20K, and is tested on all images.

    Validation during training reads the part of the validation images. A run has as many epochs as
    before: what is given in iterations (length, warm-up, steps, intervals) shrinks in proportion.

    Args:
        cfg (Config): A config for COCO 2017 or ADE20K; it is not changed.
        part (str): ``'1pct'`` or ``'10pct'``.

    Raises:
        ValueError: If the config trains on other data.
    """
    cfg = copy.deepcopy(cfg)
    # They may be the same objects as those of the test.
    cfg.val_dataloader, cfg.val_evaluator = copy.deepcopy((cfg.val_dataloader, cfg.val_evaluator))
    # mmpose's file of persons that a detector found in val2017 is of all its images.
    found = any('bbox_file' in dataset for dataset in datasets_of(cfg.val_dataloader))
    for loader in [cfg.train_dataloader] if found else [cfg.train_dataloader, cfg.val_dataloader]:
        for dataset in datasets_of(loader):
            dataset.ann_file = _part_file(dataset, part, str(cfg.filename))
    for node in [] if found else dicts(cfg.val_evaluator):
        if _COCO_FILE.search(node.get('ann_file') or ''):
            node.ann_file = node.ann_file.replace('.json', f'_{part}.json')
    _shorten_schedule(cfg, PARTS[part])
    return cfg


def command_for(path: str) -> str | None:
    """Return the command that makes a file of a part; None for any other file."""
    match = _PART_FILE.search(path)
    if match is None:
        return None
    return f'focal-mm data {"coco" if match[2] == "json" else "ade20k"}-{match[1]} DIR'


def _part_file(dataset: ConfigDict, part: str, config: str) -> str:
    """Return the ``ann_file`` of a part, from the dataset that reads all images."""
    file = dataset.get('ann_file') or ''
    if _COCO_FILE.search(file):
        return file.replace('.json', f'_{part}.json')
    if type_name(dataset) == 'ADE20KDataset' and not file:
        return f'{Path(dataset.data_prefix.img_path).name}_{part}.txt'
    raise ValueError(
        f'--data {part}: there are parts of COCO 2017 and of ADE20K, and {config} reads other data'
    )


def _shorten_schedule(cfg: Config, fraction: float) -> None:
    def shorten(iterations: Any) -> Any:
        if isinstance(iterations, (list, tuple)):
            return [shorten(value) for value in iterations]
        return iterations and max(1, round(fraction * iterations))

    counted = [node for node in dicts(cfg.get('param_scheduler')) if not node.get('by_epoch', True)]
    if 'max_iters' in cfg.train_cfg:
        counted.append(cfg.train_cfg)
    checkpoint = cfg.get('default_hooks', ConfigDict()).get('checkpoint', ConfigDict())
    if not checkpoint.get('by_epoch', True):
        counted.append(checkpoint)
    for node in counted:
        for key in ('begin', 'end', 'milestones', 'max_iters', 'val_interval', 'interval'):
            if key in node:
                node[key] = shorten(node[key])
        if 'dynamic_intervals' in node:
            node.dynamic_intervals = [tuple(pair) for pair in shorten(node.dynamic_intervals)]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON ({error}); get the file again') from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ('images', 'annotations')
    ):
        raise ValueError(f'{path} has no images and annotations, as a file of COCO has')
    return content


def _require_names(path: Path, images: list) -> None:
    """Raise a ValueError if a picture is not named by a file in a folder, as COCO's are."""
    for image in images:
        name = image.get('file_name') if isinstance(image, dict) else None
        if (
            not isinstance(name, str)
            or name in ('', '..')
            or Path(name).name != name
            or not name.isprintable()
        ):
            raise ValueError(f'{path}: file_name {name!r} is no name of a picture in a folder')


def _write(path: Path, text: str) -> None:
    """Write a new file; a file that is there with this content stays as it is."""
    if path.exists():
        if path.read_text() != text:
            raise FileExistsError(
                f'{path} exists and has other content; move it away to have it made anew'
            )
        return
    try:
        with whole_file(path) as part:
            part.write_text(text)
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error.strerror}') from error


def _extract(address: str, root: Path, prefix: str, wanted: list[str]) -> None:
    """Download an archive and extract files and folders, unless all of them are there.

    Args:
        address (str): Address of a .zip file.
        root (Path): Folder to extract to.
        prefix (str): What the names in the archive begin with, and files in ``root`` do not.
        wanted (list[str]): Files and folders, relative to ``root``.

    Raises:
        FileNotFoundError: If the archive can't be read.
    """
    missing = [name for name in wanted if not (root / name).exists()]
    if not missing:
        return
    try:
        with urlopen(address, timeout=20) as response:
            root.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=root) as file:
                with rich.progress.wrap_file(
                    response,
                    int(response.headers.get('Content-Length') or 0),
                    description=Path(address).name,
                    console=Console(stderr=True),
                    disable=not sys.stderr.isatty(),
                ) as source:
                    shutil.copyfileobj(source, file)
                with ZipFile(file) as archive:
                    size = sum(member.file_size for member in archive.infolist())
                    free = shutil.disk_usage(root).free
                    if size > free:
                        raise OSError(f'it unpacks to {size:,} bytes, the disk has {free:,}')
                    for member in archive.namelist():
                        name = member.removeprefix(prefix)
                        inside = any(f'{name}/'.startswith(f'{start}/') for start in missing)
                        if inside and not name.endswith('/') and '..' not in Path(name).parts:
                            with (
                                whole_file(root / name) as part,
                                archive.open(member) as packed,
                                part.open('wb') as unpacked,
                            ):
                                shutil.copyfileobj(packed, unpacked)
    except (OSError, HTTPException, BadZipFile) as error:
        raise FileNotFoundError(
            f'{root / missing[0]} is missing, and {address} cannot be downloaded ({error}); put '
            f'{" and ".join(missing)} of that archive into {root}'
        ) from error


def _download_images(images: list[dict], folder: Path) -> None:
    """Download the images of COCO that are not in a folder, each from its address.

    Raises:
        FileNotFoundError: If an image is missing and can't be downloaded.
    """
    missing = [image for image in images if not (folder / image['file_name']).is_file()]

    def download(image: dict) -> None:
        if not image['coco_url'].startswith(('http://', 'https://')):  # file:// is one, too
            raise OSError(f'{image["coco_url"]} is no address on the web')
        with urlopen(image['coco_url'], timeout=20) as response:
            content = response.read(_LARGEST_PICTURE)
        if len(content) == _LARGEST_PICTURE:
            raise OSError(f'{image["coco_url"]} has {len(content):,} bytes or more')
        with whole_file(folder / image['file_name']) as part:
            part.write_bytes(content)

    try:
        with ThreadPoolExecutor(16) as pool:
            for _ in rich.progress.track(
                pool.map(download, missing),
                folder.name,
                len(missing),
                console=Console(stderr=True),
                disable=not missing or not sys.stderr.isatty(),
            ):
                pass
    except (OSError, HTTPException, KeyError, AttributeError, ValueError) as error:
        raise FileNotFoundError(
            f'{len(missing)} images are missing in {folder}, and cannot be downloaded '
            f'({type(error).__name__}: {error}); put the images of {folder.name} there'
        ) from error
