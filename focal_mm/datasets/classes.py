"""The classes of a config's datasets, held against its annotation files and its heads.

What these disagree on stops no run: mmdet drops annotations of unknown categories, and evaluates
whatever is left.
"""

import difflib
import json
import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from ..config import datasets_of, library, type_name

_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
# These parts of a model count something else: objects and background, stuff, a backbone's own
# classifier, the classes of a loss beside the head that has them too.
_OTHER_CLASSES = re.compile(r'rpn_head|semantic_head|backbone|teacher|data_preprocessor|loss_?\w*')
_OTHER_HEADS = {'STDCHead', 'SideAdapterCLIPHead'}  # edges; the classes without the background


def require_classes(cfg: Config, *loaders: str) -> None:
    """Raise a ValueError if the classes of datasets, annotation files and heads do not fit.

    Datasets that say nothing of their classes, trackers, and models whose classes are words (GLIP,
    Grounding DINO), are left alone.

    Args:
        cfg (Config): A config of mmdet, mmseg or mmpretrain; others are left alone. It may be one
            of datasets without a model.
        loaders (str): Keys of the data loaders that the run uses, as ``'train_dataloader'``.

    Raises:
        ValueError: Names the first part that does not fit, and what to set.
    """
    if library(cfg) not in ('mmdet', 'mmseg', 'mmpretrain'):
        return
    if not cfg.get('model', {}).keys().isdisjoint({'language_model', 'tracker'}):
        return
    labels: dict[
        tuple[str, ...], str
    ] = {}  # the names of labels 0, 1, ..., and the file they are of
    for key in loaders:
        for dataset in datasets_of(cfg.get(key)):
            classes = classes_of(cfg, dataset)
            file = coco_file(cfg, dataset)
            if file and classes is not None:
                labels.setdefault(_require_categories(key, dataset, classes, file), str(file))
            _require_heads(cfg, key, dataset, classes)
    if len(labels) > 1:
        (first, one), (second, other) = list(labels.items())[:2]
        index = next((i for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1]), None)
        raise ValueError(
            f'{one} and {other} list their categories in different orders, and mmdet counts '
            f'labels in that order: '
            + (
                f'label {index} is {first[index]!r} in one and {second[index]!r} in the other'
                if index is not None
                else f'one has {len(first)} of the classes and the other {len(second)}'
            )
            + '; give both the same list of categories'
        )


def classes_of(cfg: Config, dataset: ConfigDict) -> tuple[str, ...] | None:
    """Return the classes of a dataset: its metainfo's, else those of its type.

    Args:
        cfg (Config): The config, for its scope.
        dataset (ConfigDict): One of its datasets.

    Returns:
        tuple[str] or None: None if neither says.
    """
    classes = dataset.get('metainfo', {}).get('classes', dataset.get('classes'))
    if isinstance(classes, str):  # the name of a file, as in mmengine; or a comma is missing
        if not Path(classes).is_file():
            raise ValueError(
                f'classes = ({classes!r}) is a string, not a tuple; a tuple of one class has a '
                f'comma: classes = ({classes!r},)'
            )
        classes = Path(classes).read_text(encoding='utf-8').splitlines()
    if classes is None:
        classes = getattr(type_of(cfg, dataset), 'METAINFO', {}).get('classes')
    return None if classes is None else tuple(classes)


def type_of(cfg: Config, dataset: ConfigDict) -> Any:
    """Return the type that a dataset builds, or None if it is not registered."""
    if not isinstance(dataset.get('type'), str):
        return dataset.get('type')
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope') or library(cfg)) as registry:
        return registry.get(dataset.type)


def coco_file(cfg: Config, dataset: ConfigDict) -> Path | None:
    """Return the annotation file of a dataset that reads it as mmdet's ``CocoDataset`` does.

    Args:
        cfg (Config): The config, for its scope.
        dataset (ConfigDict): One of its datasets.

    Returns:
        Path or None: None for other datasets, and for a file that is not on a local disk.
    """
    file = dataset.get('ann_file') or ''
    if library(cfg) != 'mmdet' or not isinstance(file, str) or not file.endswith('.json'):
        return None
    from mmdet.datasets import CocoDataset

    own = getattr(type_of(cfg, dataset), 'load_data_list', None)
    path = Path(dataset.get('data_root') or '', file)
    return path if own is CocoDataset.load_data_list and path.is_file() else None


def read_categories(path: Path) -> list[dict]:
    """Return the categories of a COCO file, without reading its annotations.

    Raises:
        ValueError: If the file is no JSON, or has no list of categories with ids and names.
    """
    found: Any = None
    with path.open('rb') as file:
        size = path.stat().st_size
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b''
        for match in _CATEGORIES.finditer(text):
            length = 0
            while found is None and length < size:
                length = 16 * length or 1 << 16
                part = text[match.end() : match.end() + length].decode(errors='ignore')
                # The list goes on after this part, or is none.
                with suppress(ValueError, RecursionError):
                    found, _ = json.JSONDecoder().raw_decode(part)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and 'id' in one and isinstance(one.get('name'), str) for one in found
    ):
        raise ValueError(f'{path} has no "categories", a list of ids and names as in COCO')
    return found


def _require_categories(
    key: str, dataset: ConfigDict, classes: Sequence[str], file: Path
) -> tuple[str, ...]:
    """Return the names of labels 0, 1, ..., in the order of the annotation file.

    Raises:
        ValueError: If classes and categories do not fit.
    """
    names = [category['name'] for category in read_categories(file)]
    listed = f'it has {shorten(names)}'
    explicit = 'classes' in dataset.get('metainfo', {})
    missing = [name for name in classes if name not in names]
    unknown = [name for name in names if name not in classes]
    if explicit and missing:
        near = difflib.get_close_matches(missing[0], names, n=1)
        raise ValueError(
            f'{file}, which {key} reads, has no category {missing[0]!r} of metainfo.classes; '
            + (f'did you mean {near[0]!r}? ' if near else '')
            + listed
        )
    if not explicit and unknown:
        raise ValueError(
            f'{file}, which {key} reads, has the category {unknown[0]!r}, which is not among the '
            f'{len(classes)} classes of {type_name(dataset)}; give every dataset '
            f'metainfo=dict(classes=(...)) and every head num_classes, or let `focal-mm new` write '
            f'the config: {listed}'
        )
    labels = tuple(name for name in names if name in classes)
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f'{file} has two categories that are called {twice!r}; rename one')
    return labels


def _require_heads(
    cfg: Config, key: str, dataset: ConfigDict, classes: Sequence[str] | None
) -> None:
    metainfo = dataset.get('metainfo', {})
    kind = type_of(cfg, dataset)
    things = metainfo.get('thing_classes') or getattr(kind, 'METAINFO', {}).get('thing_classes')
    count = None if classes is None else len(classes)
    source = f'{type_name(dataset)} of {key}'
    spare = False  # whether a head may have more
    if library(cfg) == 'mmpretrain':
        folder = class_folder(dataset)
        spare = folder is None and 'classes' not in metainfo  # ImageNet, and a head for 22K
        if folder is not None:
            count = sum(path.is_dir() for path in folder.iterdir())
            source = f'{folder}, which {key} reads,'
    if library(cfg) == 'mmdet' and things:
        count = len(things)
    if not count:
        return
    for path, node in _heads(cfg.get('model', ConfigDict()), 'model'):
        own = 'num_things_classes' if 'num_things_classes' in node else 'num_classes'
        if node[own] < count or (node[own] > count and not spare):
            raise ValueError(
                f'{path}.{own} is {node[own]}, and {source} has {count} classes'
                f'{f" ({shorten(classes)})" if classes and len(classes) == count else ""}; '
                f'set both alike, as --cfg-options {path}.{own}={count}, '
                'or let `focal-mm new` write the config'
            )


def class_folder(dataset: ConfigDict) -> Path | None:
    """Return the folder whose subfolders are the classes of a dataset of mmpretrain, if any."""
    root, split = Path(dataset.get('data_root') or ''), dataset.get('split') or ''
    if type_name(dataset) not in ('CustomDataset', 'ImageNet') or dataset.get('ann_file'):
        return None
    if split and (root / 'meta' / f'{split}.txt').is_file():  # mmpretrain reads labels there
        return None
    prefix = dataset.get('data_prefix') or split
    if isinstance(prefix, dict):
        prefix = prefix.get('img_path') or ''
    folder = root / prefix
    return folder if dataset.get('with_label', True) and folder.is_dir() else None


def _heads(node: Any, path: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the parts of a model that have a number of classes, with their paths."""
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _heads(child, f'{path}.{index}')
    elif isinstance(node, dict):
        own = [node.get('num_classes'), node.get('num_things_classes')]
        if any(isinstance(count, int) for count in own) and type_name(node) not in _OTHER_HEADS:
            yield path, node
        for key, child in node.items():
            if not _OTHER_CLASSES.fullmatch(key):
                yield from _heads(child, f'{path}.{key}')


def shorten(names: Sequence[str], count: int = 6) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f' and {len(names) - count} more' if len(names) > count else ''
    return ', '.join(names[:count]) + more
