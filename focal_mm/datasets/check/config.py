"""The checks of all data of a config."""

import os
from collections.abc import Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ...config import DATALOADERS, datasets_of, dicts, library, type_name
from ..classes import classes_of, require_classes, type_of
from . import fix as fixing
from .annotations import Rules
from .coco import CocoFile
from .folders import ClassFolder, LabelList
from .label_maps import LabelMaps
from .overlap import check_overlap
from .panoptic import PanopticFile
from .pictures import PICTURES, Checked, Reading
from .report import Report
from .resizing import resizing_of
from .voc import VocFiles

Source = CocoFile | PanopticFile | VocFiles | LabelMaps | ClassFolder | LabelList
_LOADERS = ('LoadImageFromFile', 'LoadImage')
_SUFFIXES = (*PICTURES, '.ppm', '.pgm')


def check_config(
    cfg: Config,
    thorough: bool = False,
    loaders: Sequence[str] = DATALOADERS,
    fix: Path | None = None,
) -> Report:
    """Check the datasets of a config.

    Checked are files of COCO's form (also LVIS, Objects365, panoptic and keypoints), the layout of
    Pascal VOC, label maps of mmseg, and the folders and lists of mmpretrain's ``CustomDataset``
    and ``ImageNet``. Datasets of other types, and those that are not on a local disk, are named in
    ``looked_at``.

    Args:
        cfg (Config): A config of mmdet, mmseg, mmpretrain or mmpose.
        thorough (bool): Decode every picture and label map. Default: only look whether they are
            there, and open 500 of each set.
        loaders (sequence of str): Keys of the data loaders. Default: all three.
        fix (Path, optional): Where a cleaned copy of the first annotation file with errors is
            written to; copies of others get the name of their part of the data at the end. Every
            picture is decoded. Default: no copies.

    Returns:
        Report: The findings.

    Raises:
        FileExistsError: If the copy or its list of what was left out exists.
    """
    report = Report()
    if fix is not None:
        fixing.refuse_to_overwrite(fix)
        thorough = True
    found = Report()
    done: dict[Any, tuple[Report, Checked]] = {}
    roles: dict[str, list[tuple[Source, Checked]]] = {}
    places: set[tuple[str, ...]] = set()
    for key in loaders:
        role = key.removesuffix('_dataloader')
        for dataset in datasets_of(cfg.get(key)):
            source = _source_of(cfg, role, dataset, found)
            if source is None:
                continue
            if source not in done:
                own = Report()
                done[source] = own, source.check(own, thorough)
                place = _place(source)
                found.merge(own, again=place in places)
                places.add(place)
            roles.setdefault(role, []).append((source, done[source][1]))
    _check_classes(cfg, loaders, done, report)
    report.merge(found)
    _check_roles(cfg, roles, report, thorough)
    if fix is not None:
        _write_copies(done, fix, report)
    return report


def _check_classes(
    cfg: Config,
    loaders: Sequence[str],
    done: dict[Source, tuple[Report, Checked]],
    report: Report,
) -> None:
    """Hold the classes of datasets, annotation files and heads against each other."""
    # Why a file cannot be read is said by its own check.
    unread = [str(one.file) for one, (_, checked) in done.items()
              if isinstance(one, CocoFile) and not checked.pictures]  # fmt: skip
    try:
        require_classes(cfg, *loaders)
    except ValueError as error:
        text = str(error.args[-1])
        if not any(file in text for file in unread):
            report.error(cfg.filename or 'config', text)


def _place(source: Source) -> tuple[str, ...]:
    """Return the files of a source, by which it is known to have been looked at before."""
    return tuple(str(value) for value in vars(source).values() if isinstance(value, Path))


def _source_of(cfg: Config, role: str, dataset: ConfigDict, report: Report) -> Source | None:
    """Return what a dataset reads; None, and a line in the report, if that cannot be checked."""
    name = type_name(dataset)
    root, file = Path(dataset.get('data_root') or ''), dataset.get('ann_file') or ''
    storage = dataset.get('backend_args') or dataset.get('file_client_args') or {}
    kind = type_of(cfg, dataset)
    if kind is None:
        report.looked_at.append(f'{role}: {name} is not registered, and so not checked')
        return None
    if storage.get('backend', 'local') not in ('local', 'disk') or '://' in f'{root}{file}':
        report.looked_at.append(f'{role}: {name} is not on a local disk, and so not checked')
        return None
    if isinstance(file, str) and file and not (root / file).exists():
        report.error(root / file, f'does not exist; {role} reads it')
        return None
    for make in (_coco, _voc, _label_maps, _classification):
        try:
            source = make(cfg, role, dataset, kind, root)
        except ValueError as error:
            report.error(cfg.filename or 'config', str(error))
            return None
        if source is not None:
            return source
    report.looked_at.append(f'{role}: {name} is of a type that is not checked')
    return None


def _coco(
    cfg: Config, role: str, dataset: ConfigDict, kind: Any, root: Path
) -> CocoFile | PanopticFile | None:
    """Return the file of a dataset that reads COCO's form, of mmdet or mmpose."""
    file = dataset.get('ann_file')
    load = getattr(kind, 'load_data_list', None)
    naming, areas = _coco_types().get(load), True
    if library(cfg) == 'mmpose' and _is_pose(kind):
        naming, areas = 'file_name', False
    if naming is None or not isinstance(file, str) or not file:
        return None
    prefix: Any = dataset.get('data_prefix') or {}
    folder, reading = (
        root / (prefix.get('img') or ''),
        _reading(dataset, cfg.get(f'{role}_dataloader')),
    )
    if _is_a(kind, 'CocoPanopticDataset'):
        segments = root / prefix['seg'] if prefix.get('seg') else None
        return PanopticFile(root / file, folder, segments, role, reading)
    metrics = [node.get('metric') or '' for node in dicts(cfg.get(f'{role}_evaluator'))]
    classes = classes_of(cfg, dataset) if library(cfg) == 'mmdet' else None
    # Teachers label pictures of which the file knows nothing.
    unlabelled = any(type_name(node) == 'LoadEmptyAnnotations' for node in dicts(dataset))
    rules = Rules(
        classes=classes,
        masks=any(node.get('with_mask') for node in dicts(dataset.get('pipeline')))
        or any('segm' in metric for metric in metrics),
        keypoints=library(cfg) == 'mmpose',
        role='test' if unlabelled else role,
        areas=areas,
        lvis='LVIS' in kind.__name__ or _is_a(kind, 'LVISV05Dataset'),
    )
    resizing = resizing_of(dataset.get('pipeline')) if role == 'train' else None
    return CocoFile(root / file, folder, rules, naming, resizing, reading)


def _coco_types() -> dict[Any, str]:
    """Return how datasets of mmdet name their pictures, by the function that reads the file."""
    try:
        from mmdet import datasets
    except ImportError:
        return {}
    return {
        datasets.CocoDataset.load_data_list: 'file_name',
        datasets.LVISV05Dataset.load_data_list: 'LVIS v0.5',
        datasets.LVISV1Dataset.load_data_list: 'coco_url',
        datasets.Objects365V1Dataset.load_data_list: 'file_name',
        datasets.Objects365V2Dataset.load_data_list: 'Objects365 V2',
    }


def _is_a(kind: Any, name: str) -> bool:
    return any(base.__name__ == name for base in getattr(kind, '__mro__', ()))


def _is_pose(kind: Any) -> bool:
    base = next((one for one in kind.__mro__ if one.__name__ == 'BaseCocoStyleDataset'), None)
    return base is not None and all(
        getattr(kind, name) is getattr(base, name)
        for name in ('_load_annotations', 'parse_data_info')
    )


def _voc(cfg: Config, role: str, dataset: ConfigDict, kind: Any, root: Path) -> VocFiles | None:
    """Return the files of a dataset that reads Pascal VOC's layout, of mmdet."""
    base = next((one for one in kind.__mro__ if one.__name__ == 'XMLDataset'), None)
    classes, file = classes_of(cfg, dataset), dataset.get('ann_file')
    if library(cfg) != 'mmdet' or base is None or not classes or not file:
        return None
    if kind.load_data_list is not base.load_data_list:
        return None
    folder = root / ((dataset.get('data_prefix') or {}).get('sub_data_root') or '')
    images, annotations = (
        folder / (_argument(kind, dataset, key) or '') for key in ('img_subdir', 'ann_subdir')
    )
    return VocFiles(
        root / file,
        images,
        annotations,
        classes,
        role,
        _reading(dataset, cfg.get(f'{role}_dataloader')),
    )


def _label_maps(
    cfg: Config, role: str, dataset: ConfigDict, kind: Any, root: Path
) -> LabelMaps | None:
    """Return the folders of a dataset of mmseg."""
    prefix: Any = dataset.get('data_prefix') or {}
    classes, file = classes_of(cfg, dataset), dataset.get('ann_file') or ''
    if library(cfg) != 'mmseg' or not classes or not _is_a(kind, 'BaseSegDataset'):
        return None
    base = next(one for one in kind.__mro__ if one.__name__ == 'BaseSegDataset')
    if 'seg_map_path' not in prefix or kind.load_data_list is not base.load_data_list:
        return None
    maps = root / prefix.seg_map_path
    # Where these differ from its classes, mmseg maps the values of the type's own.
    own = getattr(kind, 'METAINFO', {}).get('classes') or classes
    backends = [
        step.get('imdecode_backend') or 'pillow'
        for step in dicts(dataset.get('pipeline'))
        if type_name(step) == 'LoadAnnotations'
    ]
    ignore = _argument(kind, dataset, 'ignore_index')
    return LabelMaps(
        root / (prefix.get('img_path') or ''),
        maps,
        tuple(own),
        (_argument(kind, dataset, 'img_suffix'), _argument(kind, dataset, 'seg_map_suffix')),
        root / file if file and (root / file).is_file() else None,
        bool(_argument(kind, dataset, 'reduce_zero_label')),
        255 if ignore is None else ignore,
        role,
        _reading(dataset, cfg.get(f'{role}_dataloader')),
        'cv2' in backends,
    )


def _classification(
    cfg: Config, role: str, dataset: ConfigDict, kind: Any, root: Path
) -> ClassFolder | LabelList | None:
    """Return the folders or the list of a dataset of mmpretrain."""
    base = next((one for one in kind.__mro__ if one.__name__ == 'CustomDataset'), None)
    if library(cfg) != 'mmpretrain' or base is None:
        return None
    if kind.load_data_list is not base.load_data_list:
        return None
    reading = _reading(dataset, cfg.get(f'{role}_dataloader'), boxes=False)
    split, file = dataset.get('split') or '', dataset.get('ann_file') or ''
    if split and not file and (root / 'meta' / f'{split}.txt').is_file():
        file = f'meta/{split}.txt'
    prefix = dataset.get('data_prefix') or split
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    with_label = bool(dataset.get('with_label', True)) and split != 'test'
    if not file:
        suffixes = tuple(_argument(kind, dataset, 'extensions') or _SUFFIXES)
        return ClassFolder(root / prefix, suffixes, role, reading) if with_label else None
    classes = classes_of(cfg, dataset)
    count = None if classes is None else len(classes)
    return LabelList(root / file, root / prefix, count, role, with_label, reading)


def _argument(kind: Any, dataset: ConfigDict, name: str) -> Any:
    """Return an argument of a dataset: its own, else the nearest default among its type's bases."""
    if name in dataset:
        return dataset[name]
    for base in kind.__mro__[:-1]:
        parameter = signature(base).parameters.get(name)
        if parameter is not None and parameter.default is not Parameter.empty:
            return parameter.default
    return None


def _reading(dataset: ConfigDict, loader: Any, boxes: bool = True) -> Reading:
    """Return how a dataset's pipeline reads its pictures."""
    # Another pipeline, of the dataset that holds this one, may read them.
    nodes = dicts([dataset.get('pipeline'), loader])
    step = next((node for node in nodes if type_name(node) in _LOADERS), None)
    if step is None:
        return Reading(usual=False)
    backend = step.get('imdecode_backend') or 'cv2'
    color = str(step.get('color_type', 'color'))
    turns = 'ignore_orientation' not in color and 'unchanged' not in color
    return Reading(opencv=backend == 'cv2', turns=turns, boxes=boxes)


def _check_roles(
    cfg: Config,
    roles: dict[str, list[tuple[Source, Checked]]],
    report: Report,
    thorough: bool,
) -> None:
    """Hold training and validation against each other."""
    train = roles.get('train', [])
    held_out = [*roles.get('val', []), *roles.get('test', [])]
    files = {one.file for one, _ in train if hasattr(one, 'file')}
    same = {one.file for one, _ in held_out if hasattr(one, 'file')} & files
    for file in sorted(same):
        report.warning(file, 'file that training and validation both read')
    if not same:
        check_overlap(_pictures_of(train), _pictures_of(held_out), report, thorough)
    classes = [checked.classes for _, checked in train if checked.classes]
    for source, checked in held_out:
        if classes and checked.classes and checked.classes != classes[0]:
            index, pair = next(
                (i, pair)
                for i, pair in enumerate(_padded(classes[0], checked.classes))
                if pair[0] != pair[1]
            )
            report.error(
                getattr(source, 'folder', ''),
                f'folders of other classes than in training: label {index} is {pair[1]} here, and '
                f'{pair[0]} there',
            )
    for role in ('val', 'test'):
        _check_evaluator(cfg, role, roles.get(role, []), report)


def _pictures_of(sets: list[tuple[Source, Checked]]) -> dict[str, Path]:
    """Return the pictures of several sets by name, or by path where a name is taken."""
    found: dict[str, Path] = {}
    for _, checked in sets:
        for name, path in checked.pictures.items():
            found[name if found.get(name, path) == path else str(path)] = path
    return found


def _padded(one: list[str], other: list[str]) -> list[tuple[str, str]]:
    length = max(len(one), len(other))
    return list(zip(*(part + ['nothing'] * (length - len(part)) for part in (one, other))))


def _check_evaluator(
    cfg: Config, role: str, checked: list[tuple[Source, Checked]], report: Report
) -> None:
    files = {os.path.realpath(one.file) for one, _ in checked if isinstance(one, CocoFile)}
    for node in dicts(cfg.get(f'{role}_evaluator')):
        file = node.get('ann_file')
        there = files and isinstance(file, str) and Path(file).is_file()
        if there and os.path.realpath(file) not in files:
            text = f'{role}_evaluator reads it, and {role}_dataloader another file'
            report.warning(file, text)


def _write_copies(done: dict[Source, tuple[Report, Checked]], out: Path, report: Report) -> None:
    """Write cleaned copies of what has errors."""
    written: set[tuple[str, ...]] = set()
    for source, (found, checked) in done.items():
        place = _place(source)
        if not found.errors or place in written:
            continue
        written.add(place)
        role = source.rules.role if isinstance(source, CocoFile) else source.role
        target = out if not report.copies else out.with_stem(f'{out.stem}_{role}')
        try:
            if isinstance(source, CocoFile):
                report.copies.append(fixing.write_coco(source, checked, target))
            elif checked.lines:
                name = str(getattr(source, 'file', None) or place[0])
                report.copies.append(fixing.write_list(name, checked, target.with_suffix('.txt')))
            else:
                report.looked_at.append(f'{place[0]}: no copy, since its form cannot be cleaned')
        except ValueError as error:
            report.looked_at.append(str(error))
