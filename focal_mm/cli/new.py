"""A config for one's own data: what of a base config changes, and by which rules."""

import copy
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import get_installed_path
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import weights
from ..cache import whole_file
from ..config import DATALOADERS, datasets_of, dicts, library, loader_types, type_name
from ..datasets.custom import Boxes, LabelMaps
from ..datasets.mini import replace_dataset, set_num_classes, squeeze_schedulers
from .inherit import format_code, overrides

# Pictures that the schedules of the libraries' configs are made for: COCO 2017 and ADE20K.
_PICTURES = dict(mmdet=118287, mmseg=20210)
_BATCH = 16  # of the learning rates, where auto_scale_lr does not say
_MAX_EPOCHS = 300
_EVALUATIONS = 10  # in a run
_SWITCHES = ('switch_epoch', 'num_last_epochs')  # of hooks that change the pipeline at an epoch


@dataclass
class Plan:
    """How long a run is, and what was chosen for it.

    Attributes:
        iterations (int): Length of the run.
        epochs (float): The same in epochs.
        interval (int): Iterations between evaluations.
        batch (int): Pictures of all GPUs in an iteration.
        lr (float): Learning rate.
        base_lr (float): Learning rate of the base.
        base_batch (int): Batch size that this one is for.
        rule (str): How the learning rate follows from these.
    """

    iterations: int
    epochs: float
    interval: int
    batch: int
    lr: float
    base_lr: float
    base_batch: int
    rule: str


def read_base(name: str, folder: Path) -> tuple[str, Config]:
    """Read the config to inherit from.

    Args:
        name (str): A file, ``PACKAGE::PATH``, or a path among our configs; ``.py`` may be missing.
        folder (Path): Folder of the new config.

    Returns:
        tuple[str, Config]: Its name in ``_base_``, and what a config that only inherits it has.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read.
    """
    file = Path(name).expanduser()
    if file.is_file():
        base = Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    else:
        base = name if '::' in name else f'focal_mm::{name}'
        base = base if base.endswith('.py') else f'{base}.py'
    folder = folder if folder.is_dir() else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, 'base.py')
        absolute = str(file.resolve()) if file.is_file() else base
        path.write_text(_header(absolute), encoding='utf-8')
        try:
            return base, Config.fromfile(str(path))
        except (FileNotFoundError, ModuleNotFoundError, KeyError, AssertionError) as error:
            raise FileNotFoundError(f'--base {name}: {error.args[-1]}') from error
        except (ValueError, SyntaxError, AttributeError) as error:
            raise ValueError(f'--base {name}: {error}') from error


def _header(base: str) -> str:
    return (
        f"_base_ = __import__('focal_mm') and {base!r}\n"
        "custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)\n"
    )


def fit(
    base: Config,
    train: Boxes | LabelMaps,
    val: Boxes | LabelMaps,
    classes: tuple[str, ...],
    batch_size: int | None = None,
    gpus: int = 1,
    iterations: int | None = None,
    reduce_zero_label: bool = False,
    load_from: str | None = None,
) -> tuple[Config, Plan]:
    """Fit a config to other data.

    Args:
        base (Config): The config, for mmdet or mmseg; it is not changed.
        train (Boxes or LabelMaps): The training set.
        val (Boxes or LabelMaps): The validation set.
        classes (tuple[str]): The classes, in the order of the labels.
        batch_size (int, optional): Pictures for each GPU. Default: the base's.
        gpus (int): Number of GPUs. Default: 1.
        iterations (int, optional): Length of the run. Default: see :func:`plan`.
        reduce_zero_label (bool): Whether label 0 is ignored. Default: False.
        load_from (str, optional): Weights of a whole model to start from. Default: the base's.

    Returns:
        tuple[Config, Plan]: The new config, and the length of the run.

    Raises:
        ValueError: If the base does something for which the data has nothing.
    """
    cfg = copy.deepcopy(base)
    for key in ('val', 'test'):  # they may be the same objects
        for part in ('dataloader', 'evaluator'):
            name = f'{key}_{part}'
            cfg[name] = copy.deepcopy(cfg.get(name))
    _require_fit(cfg, train)
    roots = [train.images, val.images]
    roots += [one.file if isinstance(one, Boxes) else one.maps for one in (train, val)]
    root = os.path.commonpath([path if path.is_dir() else path.parent for path in roots])
    cfg.data_root = f'{root.rstrip("/")}/'
    metainfo: dict[str, Any] = dict(classes=classes)
    if isinstance(train, Boxes) and len(classes) > 80:  # the colors are COCO's
        metainfo['palette'] = 'random'
    for key in DATALOADERS:
        split = train if key == 'train_dataloader' else val
        for dataset in list(datasets_of(cfg[key])):
            fields = _dataset(split, cfg.data_root, metainfo, reduce_zero_label)
            if type_name(dataset) == fields['type']:
                dataset.update(fields)
            else:
                replace_dataset(dataset, **fields)
    if isinstance(val, Boxes):
        _evaluate_boxes(cfg, val)
    else:
        for node in dicts([cfg.get(key) for key in DATALOADERS]):
            if node.get('reduce_zero_label') is not None:
                node.reduce_zero_label = reduce_zero_label
        for key in ('val_evaluator', 'test_evaluator'):
            if not any(type_name(node) == 'IoUMetric' for node in dicts(cfg[key])):
                cfg[key] = ConfigDict(type='IoUMetric', iou_metrics=['mIoU'])
    set_num_classes(cfg.model, len(classes))
    if load_from:
        cfg.load_from = load_from
    plan = _plan(cfg, len(train), batch_size, gpus, iterations)
    _apply(cfg, plan, len(train), batch_size)
    return cfg, plan


def _require_fit(cfg: Config, train: Boxes | LabelMaps) -> None:
    needed = dict(mmdet='boxes', mmseg='label maps').get(library(cfg) or '')
    if needed is None:
        raise ValueError(
            f'--base: a config of mmdet or mmseg is needed, and it is one of {library(cfg)}'
        )
    if needed != ('boxes' if isinstance(train, Boxes) else 'label maps'):
        raise ValueError(
            f'--base is a config of {library(cfg)}, which needs {needed}, and --train has others'
        )
    types = loader_types(cfg)
    datasets = list(datasets_of(cfg.train_dataloader))
    if 'LoadPanopticAnnotations' in types:
        raise ValueError('--base segments things and stuff; take one that detects, or of mmseg')
    if any(node.get('with_seg') for node in dicts(cfg.train_dataloader)):
        raise ValueError('--base also reads maps of stuff (with_seg), which --train has not')
    if len(datasets) > 1 and any(one.pipeline != datasets[0].pipeline for one in datasets):
        raise ValueError('--base trains on several datasets at once (semi-supervised, mixtures)')
    if any(key in cfg.model for key in ('language_model', 'tracker')):
        raise ValueError('--base finds its classes by words or tracks them; take a plain detector')
    masks = any(node.get('with_mask') for node in dicts(cfg.train_dataloader))
    if isinstance(train, Boxes) and masks and not train.has_masks:
        raise ValueError(
            f'--base trains masks, and {train.file} has none (segmentation); take a detector of '
            'boxes, such as --base atss/focalnet_t_3x or sparse_rcnn/focalnet_t_3x'
        )


def _dataset(
    split: Boxes | LabelMaps, root: str, metainfo: dict[str, Any], reduce_zero_label: bool
) -> dict[str, Any]:
    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, root)).as_posix()

    if isinstance(split, Boxes):
        folder = relative(split.images)
        return dict(
            type='CocoDataset',
            data_root=root,
            ann_file=relative(split.file),
            data_prefix=dict(img='' if folder == '.' else f'{folder}/'),
            metainfo=metainfo,
        )
    return dict(
        type='BaseSegDataset',
        data_root=root,
        data_prefix=dict(img_path=relative(split.images), seg_map_path=relative(split.maps)),
        img_suffix=split.suffixes[0],
        seg_map_suffix=split.suffixes[1],
        reduce_zero_label=reduce_zero_label,
        metainfo=metainfo,
    )


def _evaluate_boxes(cfg: Config, val: Boxes) -> None:
    masks = any(node.get('with_mask') for node in dicts(cfg.get('train_dataloader')))
    for key in ('val_evaluator', 'test_evaluator'):
        if type_name(cfg[key] if isinstance(cfg[key], dict) else ConfigDict()) != 'CocoMetric':
            metric = ['bbox', 'segm'] if masks else 'bbox'
            cfg[key] = dict(type='CocoMetric', metric=metric)
        cfg[key].ann_file = str(val.file)
        if cfg[key].get('format_only'):  # as for COCO's test set, without annotations
            cfg[key].format_only = False


def _plan(
    cfg: Config, pictures: int, batch_size: int | None, gpus: int, iterations: int | None
) -> Plan:
    """Choose the length of a run and the learning rate.

    A run sees as many pictures as the base does, times the square root of the share that the set is
    of the base's: 1 % of COCO is seen ten times as often as COCO. It has 300 epochs at most. The
    learning rate of SGD is in proportion to the batch (Goyal et al., 2017), and that of Adam's kind
    to its square root (Malladi et al., 2022).
    """
    batch = (batch_size or cfg.train_dataloader.batch_size) * gpus
    base_batch = cfg.get('auto_scale_lr', {}).get('base_batch_size', _BATCH)
    of_base = _PICTURES[library(cfg) or '']
    loop = cfg.train_cfg
    seen = loop.max_epochs * of_base if 'max_epochs' in loop else loop.max_iters * base_batch
    seen = min(seen * math.sqrt(pictures / of_base), _MAX_EPOCHS * pictures)
    if iterations is None:
        iterations = _round(max(1, seen / batch))
    optimizer = cfg.optim_wrapper.optimizer
    ratio = batch / base_batch
    linear = type_name(optimizer) == 'SGD'
    lr = float(f'{optimizer.lr * (ratio if linear else math.sqrt(ratio)):.2g}')
    interval = max(1, min(iterations, _round(iterations / _EVALUATIONS)))
    return Plan(
        iterations,
        iterations * batch / pictures,
        interval,
        batch,
        lr,
        optimizer.lr,
        base_batch,
        'in proportion to the batch (SGD)' if linear else f'by its square root ({optimizer.type})',
    )


def _round(number: float) -> int:
    """Round to two digits."""
    return max(1, int(float(f'{number:.2g}')))


def _apply(cfg: Config, plan: Plan, pictures: int, batch_size: int | None) -> None:
    """Change, in place, the loop, the schedules, the learning rate and the hooks."""
    if batch_size:
        cfg.train_dataloader.batch_size = batch_size
    length = cfg.train_cfg.get('max_epochs')
    squeeze_schedulers(cfg, plan.iterations, length)
    for node in dicts(cfg.get('param_scheduler')):
        if node.get('eta_min'):
            node.eta_min = float(f'{node.eta_min * plan.lr / plan.base_lr:.2g}')
    cfg.optim_wrapper.optimizer.lr = plan.lr
    cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr') or {}, base_batch_size=plan.batch)
    hooks = list(cfg.get('custom_hooks') or [])
    switches = [node for node in dicts(hooks) if any(key in node for key in _SWITCHES)]
    per_epoch = max(1, math.ceil(pictures / plan.batch))
    by_epoch = bool(length and switches)
    if by_epoch:
        epochs = max(1, round(plan.iterations / per_epoch))
        for node in switches:
            for key in _SWITCHES:
                if key in node:
                    node[key] = round(node[key] * epochs / length)
        interval = max(1, round(epochs / _EVALUATIONS))
        loop = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=interval)
    else:
        interval = plan.interval
        loop = dict(type='IterBasedTrainLoop', max_iters=plan.iterations, val_interval=interval)
        cfg.log_processor = dict(cfg.get('log_processor') or {}, by_epoch=False)
    cfg.train_cfg = ConfigDict(loop)
    checkpoint = dict(
        cfg.default_hooks.get('checkpoint') or dict(type='CheckpointHook'),
        by_epoch=by_epoch,
        interval=interval,
        max_keep_ckpts=2,
        save_best=_best(cfg),
    )
    cfg.default_hooks.checkpoint = ConfigDict(checkpoint)
    cfg.default_hooks.logger.interval = max(1, min(50, plan.interval // 2))
    if not any(type_name(node) == 'EMAHook' for node in dicts(hooks)):
        # The average of the last tenth of the run: the default, 0.0002, would be half the first
        # weights after 3500 iterations.
        hooks.append(
            dict(
                type='EMAHook',
                momentum=float(f'{min(0.1, max(2e-4, 10 / plan.iterations)):.2g}'),
                update_buffers=True,
            )
        )
        cfg.custom_hooks = hooks


def _best(cfg: Config) -> str:
    if library(cfg) == 'mmseg':
        return 'mIoU'
    metrics = cfg.val_evaluator.get('metric', 'bbox')
    return 'coco/segm_mAP' if 'segm' in metrics else 'coco/bbox_mAP'


def published_weights(base: str) -> str | None:
    """Return the published weights of a whole model that a config trains, if there are any.

    Args:
        base (str): The config's name in ``_base_``.

    Returns:
        str or None: A ``focal://`` name, or the address in mmdet's or mmseg's list of models.
    """
    package, _, path = base.partition('::')
    if package == 'focal_mm':
        for entry in weights.ZOO.values():
            if entry.config == path and entry.kind != 'classifier' and entry.mirrors:
                return None if entry.refused else f'focal://{entry.name}'
    elif path:
        from mmengine.config.utils import _get_cfg_metainfo

        try:
            models = _get_cfg_metainfo(get_installed_path(package), path)
        except (ValueError, OSError, KeyError):  # no list of models, or none of this config
            return None
        return models.get('Weights')
    return None


def write(
    path: Path, base_name: str, base: Config, cfg: Config, plan: Plan, classes: tuple[str, ...]
) -> None:
    """Write the config.

    Args:
        path (Path): The new file.
        base_name (str): The base's name in ``_base_``.
        base (Config): The base.
        cfg (Config): The new config, of :func:`fit`.
        plan (Plan): The length of the run.
        classes (tuple[str]): The classes.

    Raises:
        FileExistsError: If the file exists.
        ValueError: If it cannot be written.
    """
    if path.exists():
        raise FileExistsError(f'{path} exists; give another name, or move it away')
    metainfo = dict(next(datasets_of(cfg.train_dataloader)).metainfo)
    constants = dict(
        data_root=cfg.data_root, classes=classes, metainfo=metainfo, num_classes=len(classes)
    )
    extra = ", palette='random'" if 'palette' in metainfo else ''
    text = (
        f'# {len(classes)} classes. {plan.iterations} iterations of {plan.batch} pictures: '
        f'{plan.epochs:.0f} epochs. The learning rate,\n'
        f'# {plan.base_lr} for {plan.base_batch} pictures, is scaled {plan.rule}.\n'
        "# (The import reads the base for OpenMMLab's own tools.)\n"
        + format_code(
            _header(base_name)
            + f'\ndata_root = {cfg.data_root!r}\nclasses = {classes!r}\n'
            + f'metainfo = dict(classes=classes{extra})\n'
            + 'num_classes = len(classes)\n\n'
            + overrides(base, cfg, constants)
        )
    )
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding='utf-8')
    except OSError as error:
        raise ValueError(f'{path} cannot be written: {error.strerror}') from error


def print_summary(
    console: Console,
    sets: dict[str, Boxes | LabelMaps],
    classes: tuple[str, ...],
    zero_is_ignored: bool,
) -> None:
    """Print pictures, their sizes, and how often each class occurs.

    Args:
        console (Console): Where to print.
        sets (dict): The training and validation set, by their names.
        classes (tuple[str]): The classes.
        zero_is_ignored (bool): Whether the label of the first class is 1.
    """
    table = Table(title='pictures', title_justify='left')
    for column in ('set', 'pictures', 'smallest', 'median', 'largest', 'without objects'):
        table.add_column(column, justify='left' if column == 'set' else 'right')
    counts: dict[str, dict[str, int]] = {}
    for split, one in sets.items():
        sides = sorted(one.sizes, key=lambda size: size[0] * size[1])
        middle = [sides[0], sides[len(sides) // 2], sides[-1]] if sides else []
        empty = ''
        if isinstance(one, Boxes):
            counts[split] = dict(one.count())
            filled = {annotation.get('image_id') for annotation in one.content['annotations']}
            empty = str(sum(image.get('id') not in filled for image in one.content['images']))
        else:
            counts[split] = {
                name: one.values[index + zero_is_ignored] for index, name in enumerate(classes)
            }
        table.add_row(split, str(len(one)), *(f'{w}x{h}' for w, h in middle), empty)
    console.print(table)
    unit = 'boxes' if isinstance(sets['train'], Boxes) else 'label maps with it'
    if not isinstance(sets['train'], Boxes):
        unit += ', without label 0' * zero_is_ignored
    table = Table(title=unit, title_justify='left')
    table.add_column('class')
    for split in sets:
        table.add_column(split, justify='right')
    for name in classes:
        row = [counts[split].get(name, 0) for split in sets]
        table.add_row(escape(name), *map(str, row), style=None if row[0] else 'yellow')
    console.print(table)
