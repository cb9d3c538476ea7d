"""One's own data: COCO files, the layouts of YOLO and Pascal VOC, pictures with label maps."""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from .check import PICTURES, count_labels, open_picture, oriented_size
from .check.annotations import ids_of
from .check.coco import pictures_of
from .classes import shorten
from .subsets import _read, _write


@dataclass
class Boxes:
    """Pictures with boxes, and perhaps masks.

    Attributes:
        file (Path): COCO file, absolute.
        images (Path): Folder that its file names are relative to, absolute.
        content (dict): Content of the file.
    """

    file: Path
    images: Path
    content: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories, in the order of the file, which is that of mmdet's labels."""
        return tuple(category['name'] for category in self.content['categories'])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each picture that has them."""
        _, sizes = pictures_of(self.content)
        return [(round(width), round(height)) for width, height in sizes.values()]

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a mask."""
        return any(one.get('segmentation') for one in self.content['annotations'])

    def count(self) -> Counter[str]:
        """Return how many boxes each class has."""
        names = {one['id']: one['name'] for one in self.content['categories']}
        ids = Counter(ids_of([one.get('category_id') for one in self.content['annotations']]))
        return Counter({name: ids[number] for number, name in names.items()})

    def __len__(self) -> int:
        return len(self.content['images'])


@dataclass
class LabelMaps:
    """Pictures with a label map each.

    Attributes:
        images (Path): Folder of the pictures, absolute.
        maps (Path): Folder of the label maps, absolute.
        suffixes (tuple[str, str]): How the names of pictures and maps end.
        sizes (list[tuple[int, int]]): Width and height of each picture.
        values (Counter[int]): For each value, the number of label maps that have it.
    """

    images: Path
    maps: Path
    suffixes: tuple[str, str]
    sizes: list[tuple[int, int]] = field(default_factory=list)
    values: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.sizes)


def read_boxes(
    splits: dict[str, list[Path]], out: Path, names: Sequence[str] | None = None
) -> dict[str, Boxes]:
    """Read sets of pictures with boxes. YOLO and Pascal VOC layouts are converted to COCO files.

    Args:
        splits (dict[str, list[Path]]): For each split what names it, in any order: a COCO file and
            the folder of its pictures, or the folder alone if the file is in it; a YOLO
            ``data.yaml``; a folder of pictures and one of YOLO's ``.txt`` or Pascal VOC's
            ``.xml`` files, or the folder that has both; a list of Pascal VOC's, as
            ``ImageSets/Main/train.txt``.
        out (Path): The converted files are called after it, ``OUT_train.json``.
        names (sequence of str, optional): Names of YOLO's classes. Default: those of the
            ``data.yaml`` or ``classes.txt`` near the labels.

    Raises:
        FileNotFoundError: If a file or folder is missing, or no picture of a split is there.
        FileExistsError: If a converted file exists and differs.
        ValueError: If a split has none of these forms, or a file has faults that end a conversion.
    """
    for paths in splits.values():
        for path in paths:
            if not path.exists():
                raise FileNotFoundError(f'{path}: no such file or folder')
    parts = {
        split: _find(split, [path.resolve() for path in paths]) for split, paths in splits.items()
    }
    if any(part.kind != 'coco' for part in parts.values()):
        _require_supervision()
    voc = [part for part in parts.values() if part.kind == 'voc']
    listed = list(names or sorted({name for part in voc for name in _voc_names(part)}))
    found = {}
    for split, part in parts.items():
        if part.kind == 'coco':
            found[split] = _read_coco(part)
            continue
        read = _read_yolo if part.kind == 'yolo' else _read_voc
        content = _convert(
            part, read, list(names or _yolo_names(part)) if part.kind == 'yolo' else listed
        )
        file = out.with_name(f'{out.name}_{split}.json').resolve()
        _write(file, json.dumps(content, ensure_ascii=False))
        found[split] = Boxes(file, part.images, content)
    return found


@dataclass
class _Part:
    """Where the annotations and pictures of a split are."""

    kind: str  # coco, yolo or voc
    annotations: Path  # a file for coco, else a folder
    images: Path
    stems: set[str] | None = None  # of the pictures that are used; None: all
    yaml: Path | None = None


def _find(split: str, paths: list[Path]) -> _Part:
    file = next((path for path in paths if path.is_file()), None)
    folders = [path for path in paths if path.is_dir()]
    if file is not None and file.suffix == '.json':
        return _Part('coco', file, folders[0] if folders else file.parent)
    if file is not None and file.suffix in ('.yaml', '.yml'):
        return _find_yaml(split, file)
    if file is not None and file.suffix == '.txt' and file.parent.parent.name == 'ImageSets':
        root = file.parents[2]
        # The lists of one class have a second column, -1 for the pictures without it.
        lines = [line.split() for line in file.read_text(encoding='utf-8').splitlines()]
        stems = {words[0] for words in lines if words and words[1:] != ['-1']}
        return _Part('voc', root / 'Annotations', root / 'JPEGImages', stems)
    if len(folders) == 1 and file is None:
        (root,) = folders
        inside = sorted(root.glob('*.json'))
        if len(inside) == 1:
            return _Part('coco', inside[0], root)
        for pair in (('images', 'labels'), ('JPEGImages', 'Annotations')):
            if all((root / name).is_dir() for name in pair):
                folders = [root / name for name in pair]
        folders = folders * 2 if len(folders) == 1 else folders
    if len(folders) == 2 and file is None:
        for labels, images in (folders, folders[::-1]):
            for kind, suffix in (('voc', '*.xml'), ('yolo', '*.txt')):
                if next(labels.rglob(suffix), None):
                    return _Part(kind, labels, images)
    raise ValueError(
        f'--{split} {" ".join(map(str, paths))}: give a COCO file and the folder of its pictures, '
        'a data.yaml of YOLO, or a folder of pictures and one of YOLO (.txt) or Pascal VOC (.xml) '
        'files'
    )


def _find_yaml(split: str, file: Path) -> _Part:
    data = _read_yaml(file)
    folder = data.get(split) or (data.get('valid') if split == 'val' else None)
    if not isinstance(folder, str):
        raise ValueError(
            f'{file} has no folder for {split}; give the folders of pictures and labels'
        )
    root = Path(data.get('path') or '')
    # Roboflow writes ../train/images, beside which the file itself is.
    choices = [file.parent / root / folder, file.parent / folder, file.parent / folder.lstrip('./')]
    images = next((path.resolve() for path in choices if path.is_dir()), None)
    if images is None:
        raise FileNotFoundError(f'{choices[0]}, which {file} names, does not exist')
    # YOLO replaces the last folder that is called images.
    parts = list(images.parts)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    return _Part('yolo', Path(*parts), images, yaml=file)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{file} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{file} has no names and folders, as a data.yaml of YOLO has')
    return data


def _yolo_names(part: _Part) -> list[str]:
    near = [part.annotations, *list(part.annotations.parents)[:3]]
    for file in [part.yaml] if part.yaml else [p for f in near for p in sorted(f.glob('*.y*ml'))]:
        names = _read_yaml(file).get('names')
        if isinstance(names, dict):
            try:
                numbered = {int(key): str(name) for key, name in names.items()}
            except ValueError as error:
                raise ValueError(f'{file}: names has keys that are no numbers') from error
            return [numbered.get(i, f'class {i}') for i in range(max(numbered) + 1)]
        if isinstance(names, list):
            return [str(name) for name in names]
    for folder in near:
        file = folder / 'classes.txt'
        if file.is_file():
            return [
                line.strip()
                for line in file.read_text(encoding='utf-8').splitlines()
                if line.strip()
            ]
    raise FileNotFoundError(
        f'{part.annotations}: no data.yaml or classes.txt near it names the classes; '
        'give them by --classes'
    )


def _voc_names(part: _Part) -> Iterator[str]:
    for path in _labels(part, '.xml'):
        yield from (node.text or '' for node in _parse_xml(path).iterfind('object/name'))


def _labels(part: _Part, suffix: str) -> list[Path]:
    files = sorted(part.annotations.rglob(f'*{suffix}'))
    return [path for path in files if part.stems is None or path.stem in part.stems]


def _parse_xml(path: Path) -> Any:
    from xml.etree.ElementTree import ParseError

    from defusedxml.ElementTree import parse  # comes with supervision

    try:
        return parse(path).getroot()
    except ParseError as error:
        raise ValueError(f'{path} is no XML: {error}') from error


def _require_supervision() -> None:
    try:
        import supervision  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'YOLO and Pascal VOC layouts are read by supervision: pip install "focal-mm[datasets]"'
        ) from error


def _convert(
    part: _Part, read: Callable[[Path, tuple[int, int], list[str]], Any], names: list[str]
) -> dict[str, Any]:
    """Return the content of a COCO file: categories from 1 in the order of ``names``."""
    import supervision

    suffix = '.txt' if part.kind == 'yolo' else '.xml'
    pictures = [
        path
        for path in sorted(part.images.rglob('*'))
        if path.suffix.lower() in PICTURES and (part.stems is None or path.stem in part.stems)
    ]
    if not pictures:
        raise FileNotFoundError(f'{part.images} has no pictures')
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path in _progress(pictures, f'{part.images.name}: {part.kind}'):
        name = path.relative_to(part.images)
        size = picture_size(path)
        images.append(
            dict(id=len(images) + 1, file_name=name.as_posix(), width=size[0], height=size[1])
        )
        labels = (part.annotations / name).with_suffix(suffix)
        if not labels.is_file():  # a picture without objects
            continue
        try:
            detections = read(labels, size, names)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f'{labels}: {error}') from error
        for box, mask, label in zip(
            detections.xyxy.tolist(),
            [None] * len(detections) if detections.mask is None else detections.mask,
            [] if detections.class_id is None else detections.class_id.tolist(),
        ):
            if not 0 <= label < len(names):
                raise ValueError(
                    f'{labels} has class {label}, and there are {len(names)} names, 0 to '
                    f'{len(names) - 1}'
                )
            x, y, right, bottom = (round(side, 2) for side in box)
            one = dict(
                id=len(annotations) + 1,
                image_id=len(images),
                category_id=label + 1,
                bbox=[x, y, round(right - x, 2), round(bottom - y, 2)],
                area=round((right - x) * (bottom - y), 2),
                iscrowd=0,
            )
            if mask is not None:
                outlines = [line for line in supervision.mask_to_polygons(mask) if len(line) > 2]
                one.update(
                    segmentation=[line.ravel().tolist() for line in outlines], area=int(mask.sum())
                )
            annotations.append(one)
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(names)]
    return dict(images=images, annotations=annotations, categories=categories)


def _read_yolo(path: Path, size: tuple[int, int], names: list[str]) -> Any:
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    lines = [line for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    outlines = any(len(line.split()) > 6 for line in lines)
    return yolo_annotations_to_detections(lines, size, with_masks=outlines)


def _read_voc(path: Path, size: tuple[int, int], names: list[str]) -> Any:
    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

    detections, found = detections_from_xml_obj(_parse_xml(path), names, size)
    unknown = set(found) - set(names)
    if unknown:
        raise ValueError(f'{min(unknown)!r} is not among the classes')
    return detections


def _read_coco(part: _Part) -> Boxes:
    content = _read(part.annotations)
    for table in ('images', 'annotations'):
        records = content[table]
        if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
            raise ValueError(f'{part.annotations}: its {table} are no list of objects, as in COCO')
    categories = content.get('categories')
    if (
        not isinstance(categories, list)
        or not categories
        or not all(
            isinstance(one, dict) and isinstance(one.get('name'), str) and 'id' in one
            for one in categories
        )
    ):
        raise ValueError(f'{part.annotations} has no categories with ids and names')
    twice = [name for name, n in Counter(one['name'] for one in categories).items() if n > 1]
    if twice:
        raise ValueError(f'{part.annotations} has two categories called {twice[0]!r}; rename one')
    names = [one['file_name'] for one in content['images'] if isinstance(one.get('file_name'), str)]
    if not names:
        raise ValueError(f'{part.annotations} has no images with a file_name')
    # Exporters write names relative to the folder, to one above it, or to the file.
    choices = [part.images, *list(part.images.parents)[:2], part.annotations.parent]
    there = {folder: sum((folder / name).is_file() for name in names[:100]) for folder in choices}
    images = max(choices, key=there.__getitem__)
    if not there[images]:
        raise FileNotFoundError(
            f'{part.images / names[0]}, which {part.annotations} names, does not exist, nor do the '
            'pictures after it; give the folder that the file names are relative to'
        )
    return Boxes(part.annotations, images, content)


def common_classes(sets: dict[str, Boxes], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes to train on: those of the annotations, or some of them.

    Args:
        sets (dict[str, Boxes]): The training and validation set.
        names (sequence of str, optional): The classes that are wanted. Default: all.

    Raises:
        ValueError: If the sets differ in their categories or the order of these, or a name is none
            of them.
    """
    wanted = {
        split: tuple(name for name in one.classes if names is None or name in names)
        for split, one in sets.items()
    }
    train, val = wanted['train'], wanted['val']
    for name in names or ():
        if name not in train:
            near = difflib.get_close_matches(name, sets['train'].classes, n=1)
            raise ValueError(
                f'--classes: {sets["train"].file} has no category {name!r}; '
                + (
                    f'did you mean {near[0]!r}?'
                    if near
                    else f'it has {shorten(sets["train"].classes)}'
                )
            )
    if train != val:
        only = [*(set(train) - set(val)), *(set(val) - set(train))]
        raise ValueError(
            f'{sets["train"].file} and {sets["val"].file} list '
            + (
                f'different categories ({only[0]!r} is in one)'
                if only
                else 'their categories in different orders'
            )
            + ', and mmdet counts labels in that order; give both the same list of categories'
        )
    return train


def name_labels(
    sets: dict[str, LabelMaps], names: Sequence[str] | None
) -> tuple[tuple[str, ...], bool]:
    """Return the classes of label maps, and whether label 0 is none of them.

    255 is ignored, as everywhere in mmseg. If there are as many names as the largest label, 0 is
    not labelled, as in ADE20K; if there is one more, 0 is the first class.

    Args:
        sets (dict[str, LabelMaps]): The training and validation set.
        names (sequence of str, optional): Names of the classes. Default: ``label 0`` and so on.

    Raises:
        ValueError: If the labels do not fit the names, or are none of a segmentation.
    """
    values = {value for one in sets.values() for value in one.values} - {255}
    where = sets['train'].maps
    if not values or values == {0}:
        beside = (
            ' and 255, which is ignored' if any(255 in one.values for one in sets.values()) else ''
        )
        raise ValueError(
            f'{where}: the label maps have no value but 0{beside}; a map has 0, 1, 2, ... for the '
            'classes and 255 for what is not labelled'
        )
    last = max(values)
    if last > 255:
        raise ValueError(f'{where}: label {last}; mmseg reads labels up to 254')
    if names is None:
        return tuple(f'label {value}' for value in range(last + 1)), False
    if len(names) > last:
        return tuple(names), False
    if len(names) == last:
        return tuple(names), True
    raise ValueError(
        f'{where}: labels go up to {last}, and --classes has {len(names)} names; give {last + 1} '
        f'(label 0 is the first), or {last} (label 0 is not labelled)'
    )


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture in pixels, turned as EXIF says.

    Raises:
        ValueError: If it cannot be opened.
    """
    try:
        with open_picture(path) as image:
            return oriented_size(image)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def read_label_maps(split: str, paths: list[Path]) -> LabelMaps:
    """Read a folder of pictures and a folder of label maps, in any order.

    The values of every label map are counted, and the suffixes by which the names differ are found.

    Args:
        split (str): ``'train'`` or ``'val'``.
        paths (list[Path]): The two folders.

    Raises:
        FileNotFoundError: If a folder is missing or has no pictures, or no names fit.
        ValueError: If label maps cannot be read, or hold colors.
    """
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(
                f'{path}: no such folder; --{split} takes pictures and label maps'
            )
    if len(paths) != 2:
        raise ValueError(f'--{split}: give two folders, one of pictures and one of label maps')
    images, maps = (path.resolve() for path in paths)
    if _looks_like_labels(images) and not _looks_like_labels(maps):
        images, maps = maps, images
    suffixes = _suffixes(images, maps)
    pairs = [
        (
            path,
            maps / f'{path.relative_to(images).as_posix().removesuffix(suffixes[0])}{suffixes[1]}',
        )
        for path in sorted(images.rglob('*'))
        if path.is_file() and path.name.endswith(suffixes[0])
    ]
    if not any(label.is_file() for _, label in pairs[1:] or pairs):
        raise FileNotFoundError(
            f'{pairs[0][0]} has no label map in {maps}; it has the same name, but for its end'
        )
    found = LabelMaps(images, maps, suffixes)
    for picture, path in _progress(pairs, f'{maps.name}: labels'):
        found.sizes.append(picture_size(picture))
        if path.is_file():
            try:
                counts = count_labels(path)
            except ValueError as error:
                raise ValueError(f'{path}: {error}') from error
            found.values.update(np.flatnonzero(counts).tolist())
    return found


def _looks_like_labels(folder: Path) -> bool:
    first = next(
        (path for path in sorted(folder.rglob('*')) if path.suffix.lower() in PICTURES), None
    )
    if first is None:
        raise FileNotFoundError(f'{folder} has no pictures')
    with open_picture(first) as image:
        return image.mode in ('1', 'L', 'P', 'I', 'I;16') and first.suffix.lower() not in (
            '.jpg',
            '.jpeg',
        )


def _suffixes(images: Path, maps: Path) -> tuple[str, str]:
    """Return the ends by which the names of pictures and label maps differ."""
    pictures, labels = (
        [
            path.relative_to(folder)
            for path in sorted(folder.rglob('*'))
            if path.suffix.lower() in PICTURES
        ]
        for folder in (images, maps)
    )
    endings = Counter(path.suffix for path in pictures)
    if len(endings) > 1:
        (first, _), (other, count) = endings.most_common(2)
        if maps != images:
            raise ValueError(
                f'{images}: pictures end in {first} and {other} ({count} of them), and mmseg reads '
                'one kind; convert the others'
            )
    picture = next(path for path in pictures if path.suffix == endings.most_common(1)[0][0])
    near = [path for path in labels if path.parent == picture.parent and path != picture] or [
        picture
    ]
    label = max(near, key=lambda path: (_shared(path.name, picture.name), -len(path.name)))
    if maps != images and picture in labels:
        label = picture
    start = _shared(picture.stem, label.stem)
    ends = picture.name[start:], label.name[start:]
    if not start:
        raise FileNotFoundError(
            f'{images / picture} has no label map in {maps}; it has the same name, but for its end'
        )
    return ends


def _shared(one: str, other: str) -> int:
    """Return how many characters two names have in common at their start."""
    return next(
        (i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def _progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(
        items,
        label,
        console=console,
        transient=True,
        disable=not console.is_terminal or len(items) < 100,
    )
