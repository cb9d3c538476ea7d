"""Bases of an old config, also those that lie in mmdet 2 or mmseg 0 and are missing beside it.

A missing base is taken from the installed mmdet or mmseg, which kept most of them under the same
names, and is put back into the old words, so that the old files can be merged over it.
"""

import copy
import difflib
import os.path
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .report import Report

_SCHEDULERS = dict(
    MultiStepLR='step', PolyLR='poly', CosineAnnealingLR='CosineAnnealing', ExponentialLR='exp'
)
# The libraries' bases assume these; their old versions had them in each pipeline.
_NORMALIZE = dict(
    type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)


def find_base(
    base: str, child: Path, libraries: tuple[str, ...], report: Report
) -> Path | dict[str, Any]:
    """Return the file of a base, or its settings if it is taken from the installed library.

    Args:
        base (str): As the child names it.
        child (Path): The config that has the base.
        libraries (tuple[str, ...]): Packages whose configs replace a missing base, in this order.
        report (Report): A note about a base that is elsewhere is added.

    Raises:
        FileNotFoundError: If there is no such base.
    """
    path = Path(os.path.normpath(child.parent / base))
    if path.is_file():
        return path
    parts = [part for part in Path(base).parts if part not in ('..', '.')]
    tail = Path(*parts[-3:])
    for folder in child.resolve().parents:
        if (folder / tail).is_file():
            report.change(f'{base} is not there; {folder / tail} is read in its place')
            return folder / tail
    near = list(path.parent.rglob(path.name)) if path.parent.is_dir() else []
    if len(near) == 1:
        report.change(f'{base} is not there; {near[0]} is read in its place')
        return near[0]
    key, known = _key(path), {}
    for library in reversed(libraries):
        configs = config_folder(library)
        known.update({_key(file): (library, file) for file in configs.rglob('*.py')})
    if key not in known:
        close = difflib.get_close_matches(key, known)
        hint = f' (they have {", ".join(close)})' if close else ''
        raise FileNotFoundError(
            f'{child}: its base {base} is neither there nor in {" or ".join(libraries)}{hint}; put '
            f'the file at {path}, or give the config.py that training wrote into its work folder'
        )
    library, file = known[key]
    name = file.relative_to(config_folder(library)).as_posix()
    report.change(f'{base} is not there; {library}::{name} is read in its place')
    return in_old_words(Config.fromfile(file)._cfg_dict.to_dict())


def config_folder(library: str) -> Path:
    """Return the folder of the configs that a package has installed."""
    spec = find_spec(library)
    return Path(spec.origin or '').parent / '.mim' / 'configs' if spec else Path(library)


def _key(path: Path) -> str:
    """Name a config by its folder and file; mmdet 3 has ``-`` in names where mmdet 2 has ``_``."""
    return f'{path.parent.name}/{path.stem}'.replace('-', '_')


def in_old_words(new: dict[str, Any]) -> dict[str, Any]:
    """Return a base of mmdet 3 or mmseg 1 in the words of mmdet 2 or mmseg 0.

    Models and steps of pipelines keep theirs, which a migration leaves as they are.
    """
    old: dict[str, Any] = {
        key: new[key] for key in ('model', 'log_level', 'load_from', 'custom_hooks') if key in new
    }
    loop = new.get('train_cfg', {})
    if 'max_epochs' in loop:
        old['runner'] = dict(type='EpochBasedRunner', max_epochs=loop['max_epochs'])
    elif 'max_iters' in loop:
        old['runner'] = dict(type='IterBasedRunner', max_iters=loop['max_iters'])
    if 'val_interval' in loop:
        old['evaluation'] = dict(interval=loop['val_interval'])
    if wrapper := new.get('optim_wrapper'):
        old['optimizer'] = dict(wrapper['optimizer'])
        old['optimizer_config'] = dict(grad_clip=wrapper.get('clip_grad'))
    if schedulers := new.get('param_scheduler'):
        old['lr_config'] = _lr_config(schedulers)
    if 'cudnn_benchmark' in new.get('env_cfg', {}):
        old['cudnn_benchmark'] = new['env_cfg']['cudnn_benchmark']
    hooks = new.get('default_hooks', {})
    if 'checkpoint' in hooks:
        old['checkpoint_config'] = _without_type(hooks['checkpoint'])
    if 'logger' in hooks:
        interval = hooks['logger'].get('interval', 10)
        old['log_config'] = dict(interval=interval, hooks=[dict(type='TextLoggerHook')])
    if 'train_dataloader' in new:
        old['data'] = _data(new)
        for key in ('data_root', 'dataset_type'):
            if key in new:
                old[key] = new[key]
        metric = new.get('val_evaluator')
        metric = metric[0] if isinstance(metric, list) else metric or {}
        names = metric.get('metric', metric.get('iou_metrics'))
        old.setdefault('evaluation', {}).update(metric=names)
    return old


def _without_type(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != 'type'}


def _lr_config(schedulers: list[dict]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for scheduler in schedulers:
        if scheduler['type'] in ('LinearLR', 'ConstantLR'):
            settings.update(
                warmup='linear' if scheduler['type'] == 'LinearLR' else 'constant',
                warmup_iters=scheduler['end'],
                warmup_ratio=scheduler.get('start_factor', scheduler.get('factor')),
            )
            continue
        settings.update(policy=_SCHEDULERS[scheduler['type']], by_epoch=scheduler['by_epoch'])
        for key, name in dict(
            milestones='step', power='power', eta_min='min_lr', gamma='gamma'
        ).items():
            if key in scheduler:
                settings[name] = scheduler[key]
    return settings


def _data(new: dict[str, Any]) -> dict[str, Any]:
    prepared = new.get('model', {}).get('data_preprocessor', {})
    normalize = dict(_NORMALIZE)
    if 'mean' in prepared:
        normalize.update(
            mean=prepared['mean'], std=prepared['std'], to_rgb=prepared.get('bgr_to_rgb', False)
        )
    pad = dict(type='Pad', size_divisor=32)
    if 'crop_size' in new:  # of mmseg
        pad = dict(type='Pad', size=new['crop_size'], pad_val=0, seg_pad_val=255)
    data: dict[str, Any] = {}
    for split in ('train', 'val', 'test'):
        if loader := new.get(f'{split}_dataloader'):
            steps = [normalize, pad] if split == 'train' else [normalize]
            data[split] = _dataset(loader['dataset'], steps)
    loader = new['train_dataloader']
    return dict(data, samples_per_gpu=loader['batch_size'], workers_per_gpu=loader['num_workers'])


def _dataset(node: dict[str, Any], steps: list[dict]) -> dict[str, Any]:
    """Return a dataset, with the steps whose work the data preprocessor does today."""
    node = {key: value for key, value in node.items() if key not in ('backend_args', 'filter_cfg')}
    if 'dataset' in node:
        return dict(node, dataset=_dataset(node['dataset'], steps))
    if 'datasets' in node:
        return dict(node, datasets=[_dataset(child, steps) for child in node['datasets']])
    prefix = node.pop('data_prefix', {})
    if 'img_path' in prefix:  # mmseg
        node.update(img_dir=prefix['img_path'], ann_dir=prefix.get('seg_map_path'))
        if 'ann_file' in node:
            node['split'] = node.pop('ann_file')
    else:
        root = node.pop('data_root', None) or ''
        node['ann_file'] = os.path.join(root, node['ann_file'])
        folder = prefix.get('img', prefix.get('sub_data_root', ''))
        node['img_prefix'] = os.path.join(root, folder)
        if 'seg' in prefix:
            node['seg_prefix'] = os.path.join(root, prefix['seg'])
    *first, last = node['pipeline']
    return dict(node, pipeline=[*first, *copy.deepcopy(steps), last])
