"""Faults of a dataset, found before a night is spent on it.

A run stops at none of these, or stops hours later: mmdet drops boxes that it cannot use and
annotations of unknown categories, and a picture is opened when its turn comes.
"""

import filecmp
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mmengine.config import Config, ConfigDict
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..config import DATALOADERS, datasets_of, dicts, library, type_name
from .classes import class_folder, classes_of, coco_file, require_classes, type_of

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
EXAMPLES = 5  # of each fault that are kept
SAMPLE = 500  # pictures and label maps that a quick check opens, spread evenly
_ORIENTATION = 0x0112  # EXIF; from 5 on, width and height are exchanged
_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


@dataclass
class Finding:
    """A fault, and where it was found.

    Attributes:
        level (str): ``'error'`` if training fails, or learns something else than the data says;
            else ``'warning'``.
        file (str): The file or folder.
        fault (str): What is wrong.
        count (int): How often.
        examples (list[str]): The first places: ids, names of pictures.
    """

    level: str
    file: str
    fault: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """How often, what, and where."""
        where = ', '.join(self.examples)
        more = ', ...' if self.count > len(self.examples) > 0 else ''
        times = f'{self.count} x ' if self.count > 1 else ''
        return f'{times}{self.fault}' + (where and f': {where}{more}')

    def __str__(self) -> str:
        return f'{self.level}: {self.file}: {self.summary}'


class Report:
    """What a check found and what it looked at."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str, str], Finding] = {}
        self.looked_at: list[str] = []

    def error(self, file: Any, fault: str, where: str = '') -> None:
        """Note an error, with a place if the file alone does not say it."""
        self._add('error', file, fault, where)

    def warning(self, file: Any, fault: str, where: str = '') -> None:
        """Note a warning."""
        self._add('warning', file, fault, where)

    def _add(self, level: str, file: Any, fault: str, where: str) -> None:
        key = (level, str(file), fault)
        finding = self._findings.setdefault(key, Finding(*key))
        finding.count += 1
        if where and len(finding.examples) < EXAMPLES:
            finding.examples.append(where)

    @property
    def findings(self) -> list[Finding]:
        """The findings, errors first."""
        return sorted(self._findings.values(), key=lambda finding: finding.level)

    @property
    def errors(self) -> int:
        """Number of kinds of errors."""
        return sum(finding.level == 'error' for finding in self._findings.values())


def check_config(cfg: Config, thorough: bool = False) -> Report:
    """Check the datasets of a config.

    COCO files of mmdet, label maps of mmseg and folders of mmpretrain's ``ImageNet`` and
    ``CustomDataset`` are checked; datasets of other types are named in ``looked_at``.

    Args:
        cfg (Config): A config of mmdet, mmseg or mmpretrain.
        thorough (bool): Decode every picture and label map. Default: only stat them all, and open
            500 of each set.

    Returns:
        Report: The findings.
    """
    report = Report()
    try:
        require_classes(cfg, *DATALOADERS)
    except ValueError as error:
        report.error(cfg.filename or 'config', str(error.args[-1]))
    sets: dict[str, dict[str, Path]] = {}  # for each role, its pictures by name
    done: dict[str, dict[str, Path]] = {}
    for key in DATALOADERS:
        role = key.removesuffix('_dataloader')
        for dataset in datasets_of(cfg.get(key)):
            same = str({name: dataset[name] for name in dataset if name != 'pipeline'})
            if same not in done:
                done[same] = _check_dataset(cfg, role, dataset, report, thorough)
            sets.setdefault(role, {}).update(done[same])
    check_overlap(sets.get('train', {}), sets.get('val', {}), report)
    return report


def _check_dataset(
    cfg: Config, role: str, dataset: ConfigDict, report: Report, thorough: bool
) -> dict[str, Path]:
    """Check one dataset and return its pictures by their names within its folder."""
    root = Path(dataset.get('data_root') or '')
    prefix: Any = dataset.get('data_prefix') or {}
    file, classes = dataset.get('ann_file') or '', classes_of(cfg, dataset)
    if file and '://' not in f'{root}{file}' and not (root / file).exists():
        report.error(root / file, f'does not exist; {role} reads it')
        return {}
    if coco := coco_file(cfg, dataset):
        masks = any(node.get('with_mask') for node in dicts(dataset.get('pipeline')))
        return check_coco(
            coco, root / prefix.get('img', ''), report, classes, masks, role == 'train', thorough
        )
    if library(cfg) == 'mmseg' and classes and 'seg_map_path' in prefix:
        images, maps = root / prefix.get('img_path', ''), root / prefix.seg_map_path
        suffixes = (
            _argument(cfg, dataset, 'img_suffix'),
            _argument(cfg, dataset, 'seg_map_suffix'),
        )
        # Where these differ from its classes, mmseg maps the values of the type's own.
        own = type_of(cfg, dataset).METAINFO.get('classes') or classes
        names = (root / file).read_text(encoding='utf-8').split('\n') if file else None
        return check_label_maps(
            images,
            maps,
            report,
            own,
            suffixes,
            [name.strip() for name in names if name.strip()] if names else None,
            bool(_argument(cfg, dataset, 'reduce_zero_label')),
            role == 'train',
            thorough,
        )
    if folder := class_folder(dataset):
        return check_folders(folder, report, thorough)
    report.looked_at.append(f'{role}: {type_name(dataset)} is of a type that is not checked')
    return {}


def _argument(cfg: Config, dataset: ConfigDict, name: str) -> Any:
    """Return an argument of a dataset: its own, else the nearest default among its type's bases."""
    if name in dataset:
        return dataset[name]
    for base in type_of(cfg, dataset).__mro__[:-1]:
        parameter = signature(base).parameters.get(name)
        if parameter is not None and parameter.default is not Parameter.empty:
            return parameter.default
    return None


def check_coco(
    file: Path,
    folder: Path,
    report: Report,
    classes: Sequence[str] | None = None,
    masks: bool = False,
    training: bool = True,
    thorough: bool = False,
    content: dict[str, Any] | None = None,
) -> dict[str, Path]:
    """Check a COCO file and its pictures.

    Args:
        file (Path): The annotation file.
        folder (Path): Folder of the pictures.
        report (Report): Takes the findings.
        classes (sequence of str, optional): The categories that are trained on. Default: all.
        masks (bool): Whether masks are trained. Default: False.
        training (bool): Whether a class without examples is worth a warning. Default: True.
        thorough (bool): Decode every picture. Default: False.
        content (dict, optional): The file's content, if it was read already.

    Returns:
        dict[str, Path]: The pictures by their names in the file.
    """
    if content is None:
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            report.error(file, f'no JSON ({error})')
            return {}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ('images', 'annotations', 'categories')
    ):
        report.error(file, 'no COCO file: it lacks a list of images, annotations or categories')
        return {}
    images: dict[Any, dict] = {}
    pictures: dict[str, Path] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for image in content['images']:
        name = image.get('file_name')
        if 'id' not in image or not isinstance(name, str):
            report.error(file, 'image without id or file_name', f'{image}'[:80])
            continue
        if image['id'] in images:
            report.error(file, 'image id that occurs twice', f'{image["id"]} ({name})')
        if name in pictures:
            report.warning(file, 'picture that is listed twice', name)
        images[image['id']] = image
        pictures[name] = folder / name
        size = image.get('width'), image.get('height')
        if not all(_is_number(side) and side > 0 for side in size):
            report.error(file, 'image without width and height', f'{image["id"]} ({name})')
        else:
            sizes[folder / name] = size
    if not images:
        report.error(file, 'no images')
    _check_annotations(file, content, images, report, classes, masks, training)
    _check_pictures(folder, list(pictures.values()), report, thorough, sizes, file)
    report.looked_at.append(
        f'{file}: {len(images)} pictures, {len(content["annotations"])} annotations'
    )
    return pictures


def _check_annotations(
    file: Path,
    content: dict[str, Any],
    images: dict[Any, dict],
    report: Report,
    classes: Sequence[str] | None,
    masks: bool,
    training: bool,
) -> None:
    names = {one.get('id'): one.get('name') for one in content['categories']}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    for name in repeated:
        report.error(file, 'two categories with the same name', f'{name}')
    if len(names) < len(content['categories']):
        report.error(file, 'category id that occurs twice')
    seen: set[Any] = set()
    examples: Counter[str] = Counter()
    crowds = 0
    for index, annotation in enumerate(content['annotations']):
        where = f'id {annotation["id"]}' if 'id' in annotation else f'annotation {index}'
        if 'id' not in annotation:
            report.error(file, 'annotation without an id', where)
        elif annotation['id'] in seen:
            report.error(file, 'annotation id that occurs twice', where)
        seen.add(annotation.get('id'))
        image = images.get(annotation.get('image_id'))
        if image is None:
            report.error(file, 'annotation of an unknown image', where)
        if annotation.get('category_id') not in names:
            report.error(
                file,
                'annotation of an unknown category',
                f'{where} ({annotation.get("category_id")})',
            )
        else:
            examples[names[annotation['category_id']]] += 1
        crowds += bool(annotation.get('iscrowd'))
        for level, fault in _faults_of(annotation, image, masks):
            (report.error if level == 'error' else report.warning)(file, fault, where)
    if not content['annotations']:
        report.error(file, 'no annotations')
    elif crowds == len(content['annotations']):
        report.error(file, 'every annotation is iscrowd, and crowds are not trained on')
    if training:
        for name in classes if classes is not None else names.values():
            if not examples[name] and name in names.values():
                report.warning(file, 'class without examples', name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _faults_of(annotation: dict, image: dict | None, masks: bool) -> Iterator[tuple[str, str]]:
    """Yield the faults of an annotation: level and text."""
    box = annotation.get('bbox')
    size: Any = image and [image.get(side) for side in ('width', 'height')]
    if size is not None and not all(map(_is_number, size)):
        size = None
    if not isinstance(box, list) or len(box) != 4:
        yield 'error', 'bbox that is not [x, y, width, height]'
    elif not all(map(_is_number, box)):
        yield 'error', 'bbox that is not finite'
    elif box[2] < 0 or box[3] < 0:
        yield 'error', 'bbox with a negative width or height'
    elif box[2] < 1 or box[3] < 1:
        yield 'warning', 'bbox under a pixel, which is not trained on'
    elif size is not None:
        (x, y, w, h), (width, height) = box, size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            yield 'error', 'bbox outside the picture'
        elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            yield 'warning', 'bbox that reaches over the edge of the picture'
    area: Any = annotation.get('area')
    if not _is_number(area):
        yield 'error', 'annotation without an area'
    elif area <= 0:
        yield 'warning', 'annotation with an area of 0, which is not trained on'
    if masks:
        yield from _faults_of_mask(annotation, size)


def _faults_of_mask(annotation: dict, size: Any) -> Iterator[tuple[str, str]]:
    mask = annotation.get('segmentation')
    if isinstance(mask, dict):
        if not isinstance(mask.get('counts'), (str, list)):
            yield 'error', 'mask without counts'
        elif size is not None and list(mask.get('size') or ()) != list(size[::-1]):
            yield 'error', 'mask of another size than the picture'
    elif not mask or not isinstance(mask, list):
        yield 'error', 'annotation without a mask (segmentation)'
    elif not all(isinstance(part, list) and all(map(_is_number, part)) for part in mask):
        yield 'error', 'polygon with points that are not finite numbers'
    elif any(len(part) < 6 or len(part) % 2 for part in mask):
        yield 'error', 'polygon of fewer than three points, or with half a point'
    elif all(_area(part) == 0 for part in mask):
        yield 'warning', 'polygon without an area'


def _area(polygon: list[float]) -> float:
    points = np.reshape(polygon, (-1, 2))
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def check_label_maps(
    images: Path,
    maps: Path,
    report: Report,
    classes: Sequence[str],
    suffixes: tuple[str, str] = ('.jpg', '.png'),
    names: list[str] | None = None,
    reduce_zero_label: bool = False,
    training: bool = True,
    thorough: bool = False,
) -> dict[str, Path]:
    """Check folders of pictures and of label maps, as mmseg reads them.

    Args:
        images (Path): Folder of the pictures.
        maps (Path): Folder of the label maps.
        report (Report): Takes the findings.
        classes (sequence of str): The classes.
        suffixes (tuple[str, str]): How their names end; what is before is the same.
        names (list[str], optional): What comes before, of those that are used. Default: all.
        reduce_zero_label (bool): Whether label 0 is ignored. Default: False.
        training (bool): Whether a class without examples is worth a warning. Default: True.
        thorough (bool): Decode all. Default: False.

    Returns:
        dict[str, Path]: The pictures by their names in the folder.
    """
    for folder in (images, maps):
        if not folder.is_dir():
            report.error(folder, 'no such folder')
            return {}
    if names is None:
        files = [path.relative_to(images).as_posix() for path in sorted(images.rglob('*'))]
        names = [file.removesuffix(suffixes[0]) for file in files if file.endswith(suffixes[0])]
        other = [f for f in files if f.lower().endswith(PICTURES) and not f.endswith(suffixes[0])]
        for file in other if images != maps else ():
            report.warning(
                images, f'picture that is not used, since it ends in no {suffixes[0]}', file
            )
    if not names:
        report.error(images, f'no pictures that end in {suffixes[0]}')
    pictures = {name + suffixes[0]: images / (name + suffixes[0]) for name in names}
    _check_pictures(images, list(pictures.values()), report, thorough)
    pairs = []
    for name in names:
        path = maps / (name + suffixes[1])
        if not path.is_file():
            report.error(maps, f'no label map for a picture ({suffixes[1]})', name + suffixes[0])
        elif not path.stat().st_size:
            report.error(maps, 'label map of 0 bytes', path.name)
        else:
            pairs.append((pictures[name + suffixes[0]], path))
    chosen = pairs if thorough else _sample(pairs)
    seen = np.zeros(256, int)
    for (_, path), labels in zip(chosen, _parallel(_read_labels, chosen, f'{maps.name}: labels')):
        name = path.relative_to(maps).as_posix()
        if isinstance(labels, str):
            report.error(maps, labels, name)
            continue
        counts, fault = labels
        if fault:
            report.error(maps, fault, name)
        values = np.flatnonzero(counts)
        last = len(classes) if reduce_zero_label else len(classes) - 1
        beyond = [int(value) for value in values if last < value != 255]
        if beyond:
            report.error(
                maps,
                f'labels beyond the {len(classes)} classes',
                f'{name} ({", ".join(map(str, beyond[:3]))})',
            )
        ignored = {255, 0} if reduce_zero_label else {255}
        if set(values.tolist()) <= ignored:
            report.warning(maps, 'label map in which every pixel is ignored', name)
        seen[values[values < 256]] += 1
    first = int(reduce_zero_label)
    for index, name in enumerate(classes if training and len(chosen) == len(pairs) else ()):
        if not seen[index + first]:
            report.warning(maps, 'class without examples', name)
    report.looked_at.append(
        f'{images}: {len(pictures)} pictures, {len(chosen)} of {len(pairs)} label maps read'
    )
    return pictures


def count_labels(path: Path) -> np.ndarray:
    """Return how many pixels have each value, in a label map.

    Returns:
        ndarray: Of at least 256 counts.

    Raises:
        ValueError: If the file cannot be read, or holds colors instead of values.
    """
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError('label map that cannot be read') from error
    if labels.ndim != 2:
        raise ValueError('label map of colors, not of one value a pixel')
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError('label map of other values than whole numbers from 0')
    return np.bincount(labels.ravel(), minlength=256)


def _read_labels(pair: tuple[Path, Path]) -> tuple[np.ndarray, str] | str:
    """Return the counts of the labels and a fault of the size, or the reason why there are none."""
    picture, path = pair
    try:
        counts = count_labels(path)
    except ValueError as error:
        return str(error)
    if path.suffix.lower() in ('.jpg', '.jpeg'):
        return 'label map as JPEG, which changes labels'
    try:
        with Image.open(picture) as image, Image.open(path) as labels:
            same = oriented_size(image) == labels.size
    except (OSError, SyntaxError, ValueError):
        same = True  # the picture is named elsewhere
    return counts, '' if same else 'label map of another size than its picture'


def check_folders(folder: Path, report: Report, thorough: bool = False) -> dict[str, Path]:
    """Check a folder that has a subfolder of pictures for each class, as ImageNet.

    Args:
        folder (Path): The folder.
        report (Report): Takes the findings.
        thorough (bool): Decode every picture. Default: False.

    Returns:
        dict[str, Path]: The pictures by their names in the folder.
    """
    pictures: dict[str, Path] = {}
    classes = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    for path in classes:
        own = [file for file in sorted(path.rglob('*')) if file.suffix.lower() in PICTURES]
        if not own:
            report.error(folder, 'class without pictures', path.name)
        pictures |= {file.relative_to(folder).as_posix(): file for file in own}
    _check_pictures(folder, list(pictures.values()), report, thorough)
    report.looked_at.append(f'{folder}: {len(pictures)} pictures of {len(classes)} classes')
    return pictures


def check_overlap(train: dict[str, Path], val: dict[str, Path], report: Report) -> None:
    """Look for pictures that are in training and validation.

    They are the same file, or files of the same name and content; many sets number their pictures
    from 1, so that the name alone says nothing.

    Args:
        train (dict[str, Path]): Pictures of training, by name.
        val (dict[str, Path]): Pictures of validation.
        report (Report): Takes the findings.
    """
    files = {os.path.realpath(path) for path in train.values()}
    names: dict[str, list[Path]] = defaultdict(list)
    for path in train.values():
        names[path.name].append(path)
    for name, path in val.items():
        copies = (other for other in names[path.name] if other.is_file() and path.is_file())
        if os.path.realpath(path) in files or any(filecmp.cmp(path, one, False) for one in copies):
            report.warning('train and val', 'picture of training that is also in validation', name)


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check_pictures(
    folder: Path,
    paths: list[Path],
    report: Report,
    thorough: bool,
    sizes: dict[Path, tuple[int, int]] | None = None,
    file: Path | None = None,
) -> None:
    """Stat all pictures; open some, or decode all."""
    there = []
    for path, size in zip(paths, _parallel(_bytes, paths, f'{folder.name}: files')):
        if size is None:
            report.error(folder, 'missing picture', _relative(path, folder))
        elif size == 0:
            report.error(folder, 'picture of 0 bytes', _relative(path, folder))
        else:
            there.append(path)
    chosen = there if thorough else _sample(there)
    look = _decode if thorough else _open
    for path, found in zip(chosen, _parallel(look, chosen, f'{folder.name}: pictures')):
        if isinstance(found, str):
            report.error(folder, found, _relative(path, folder))
        elif sizes and sizes.get(path, found) != found:
            said = sizes[path]
            report.error(
                file or folder,
                'picture of another size than width and height say',
                f'{_relative(path, folder)} ({found[0]}x{found[1]}, said {said[0]}x{said[1]})',
            )


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as OpenCV reads a picture, which turns it as EXIF says."""
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)


def _open(path: Path) -> tuple[int, int] | str:
    try:
        with Image.open(path) as image:
            return oriented_size(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 'picture that cannot be opened'


def _decode(path: Path) -> tuple[int, int] | str:
    try:
        with Image.open(path) as image:
            image.load()
            return oriented_size(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 'picture that cannot be decoded'


def _sample(items: list[_Item]) -> list[_Item]:
    return items[:: max(1, math.ceil(len(items) / SAMPLE))]


def _parallel(
    function: Callable[[_Item], _Result], items: Sequence[_Item], label: str
) -> Iterable[_Result]:
    """Return the results in order, with a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        yield from track(
            pool.map(function, items),
            label,
            len(items),
            console=console,
            transient=True,
            disable=not console.is_terminal or len(items) < 100,
        )
