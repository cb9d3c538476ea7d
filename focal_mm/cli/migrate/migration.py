"""From an old config to the text of a new one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .checking import Types
from .data import Data, leaves
from .models import heads_with_classes, translate_model
from .reading import OldFile
from .report import Report
from .schedules import translate_hooks, translate_lr, translate_optimizer, translate_runner
from .writing import Writer

# Settings that only a config of mmengine has, or only one of mmcls or mmpose.
_NEW = {'train_dataloader', 'optim_wrapper', 'param_scheduler', 'default_scope', 'default_hooks'}
_OTHER_MODELS = ('ImageClassifier', 'TopDown', 'BottomUp', 'VoteNet', 'CenterPoint')


@dataclass(frozen=True)
class Migration:
    """A migrated config.

    Attributes:
        text (str): The new config file.
        bases (list[str]): The bases that it starts from; none for a whole config.
        settings (dict): All that the new config sets.
        report (Report): What differs from a plain translation, and what is missing.
    """

    text: str
    bases: list[str]
    settings: dict[str, Any]
    report: Report


def migrate(path: Path, options: dict[str, Any] | None = None) -> Migration:
    """Put a config of mmdet 2 or mmseg 0 into the words of mmdet 3 or mmseg 1.

    Code in the file is not run, unless it only computes data.

    Args:
        path (Path): The old config. Its bases may be missing if the installed mmdet or mmseg has
            bases of the same names.
        options (dict, optional): Old settings by dotted key that replace the file's, as
            ``--cfg-options`` of mmdet 2's tools. Default: none.

    Raises:
        FileNotFoundError: If the config or one of its bases does not exist.
        ValueError: If the file is no old config, or needs to run code.
    """
    report = Report()
    old = OldFile(path, report)
    settings = _with_options(old.settings, options or {})
    _require_old(settings, path)
    types = Types(old.library)
    try:
        cfg = _translate(settings, path, old.library, types, report)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: mmdet 2 and mmseg 0 could not read this config: {type(error).__name__}: '
            f'{error}'
        ) from error
    types.remove_unknown(cfg, report)
    _leave_out_rest(settings, old.names, cfg, report)
    text, bases = Writer(old.library, types).write(cfg)
    return Migration(_header(path, report) + text, bases, cfg, report)


def _with_options(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    cfg = Config(settings)
    cfg.merge_from_dict(options)
    return _without_marks(cfg._cfg_dict.to_dict())


def _without_marks(node: Any) -> Any:
    """Remove each ``_delete_`` that found no base to delete."""
    if isinstance(node, dict):
        return {k: _without_marks(value) for k, value in node.items() if k != '_delete_'}
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_marks, node))
    return node


def _require_old(settings: dict[str, Any], path: Path) -> None:
    if new := sorted(_NEW & {*settings}):
        raise ValueError(
            f'{path}: {", ".join(new)} are words of mmdet 3 and mmseg 1; this config needs no '
            'migration, focal-mm train reads it'
        )
    model = settings.get('model')
    if not isinstance(model, dict) or 'type' not in model or 'backbone' not in model:
        raise ValueError(
            f'{path}: no model with a type and a backbone; not a config of a detector or segmentor'
        )
    if model['type'] in _OTHER_MODELS:
        raise ValueError(
            f'{path}: model.type={model["type"]!r}; only detectors of mmdet 2 and segmentors of '
            'mmseg 0 are migrated'
        )


def _translate(
    settings: dict[str, Any], path: Path, library: str, types: Types, report: Report
) -> dict[str, Any]:
    """Take what is understood out of the old settings; return the new ones."""
    evaluation = settings['evaluation'] = dict(settings.get('evaluation') or {})
    loop, length, epochs = translate_runner(settings, report)
    data = Data(library, path.parent, types.registry('DATASETS'), report)
    loaders = data.translate(settings, evaluation, epochs)
    old_model = dict(settings.pop('model'))
    for key in ('train_cfg', 'test_cfg'):  # beside the model until mmdet 2.8
        if key in settings:
            old_model[key] = settings.pop(key)
    model = translate_model(old_model, data.pipelines.data_preprocessor(), report)
    _fit_masks(model, data, report)
    _fit_classes(model, loaders, data, report)
    new: dict[str, Any] = dict(custom_imports=_imports(settings, report), default_scope=library)
    if data.root:
        new['data_root'] = data.root
    new.update(model=model, **loaders)
    new.update(train_cfg=loop, val_cfg=dict(type='ValLoop'), test_cfg=dict(type='TestLoop'))
    new['optim_wrapper'] = translate_optimizer(settings, report)
    new['param_scheduler'] = translate_lr(settings, length, epochs, report)
    if scale := settings.pop('auto_scale_lr', None):
        new['auto_scale_lr'] = scale
    elif library == 'mmdet':
        new['auto_scale_lr'] = dict(enable=False, base_batch_size=16)
    hooks = translate_hooks(settings, epochs, evaluation, report)
    data.leave_evaluation(evaluation)
    letters = dict(mmdet='Det', mmseg='Seg')[library]
    new['default_hooks'] = dict(
        timer=dict(type='IterTimerHook'),
        param_scheduler=dict(type='ParamSchedulerHook'),
        sampler_seed=dict(type='DistSamplerSeedHook'),
        visualization=dict(type=f'{letters}VisualizationHook'),
        **hooks.pop('default_hooks'),
    )
    backends = hooks.pop('vis_backends', [dict(type='LocalVisBackend')])
    new['vis_backends'] = backends
    new['visualizer'] = dict(
        type=f'{letters}LocalVisualizer', vis_backends=backends, name='visualizer'
    )
    new['log_processor'] = (
        dict(type='LogProcessor', window_size=50, by_epoch=True)
        if epochs and library == 'mmdet'
        else dict(by_epoch=epochs)
    )
    new.update(hooks)
    if data.pipelines.tta:
        new['tta_pipeline'] = data.pipelines.tta
        new['tta_model'] = dict(type=f'{letters}TTAModel')
        if library == 'mmdet':
            new['tta_model']['tta_cfg'] = dict(
                nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
            )
    settings.pop('evaluation', None)
    return new


def _imports(settings: dict[str, Any], report: Report) -> dict[str, Any]:
    old = settings.pop('custom_imports', None) or {}
    modules = old.get('imports', [])
    modules = [modules] if isinstance(modules, str) else list(modules)
    if modules:
        report.change(
            f'custom_imports: {", ".join(modules)} must be code for mmdet 3 or mmseg 1 by now'
        )
    return dict(
        imports=['focal_mm', *(name for name in modules if name != 'focal_mm')],
        allow_failed_imports=False,
    )


def _fit_classes(
    model: dict[str, Any], loaders: dict[str, Any], data: Data, report: Report
) -> None:
    """Give every head as many classes as the dataset has, where these are known."""
    heads = heads_with_classes(model)
    dataset = next(leaves(loaders['train_dataloader']['dataset']))
    own = data.classes
    names = own or data.datasets.get(dataset['type']).METAINFO.get('classes')
    if not names or not heads:
        return
    wrong = [(path, head) for path, head in heads if head['num_classes'] != len(names)]
    if not wrong or (data.library == 'mmseg' and len(names) == 2):
        return  # two classes are also one class and the background
    if own:
        for path, head in wrong:
            report.change(
                f'{path}.num_classes: {head["num_classes"]} becomes {len(names)}, the number of '
                'classes of the dataset'
            )
            head['num_classes'] = len(names)
    else:
        path, head = wrong[0]
        report.leave_out(
            'data.train',
            dict(
                classes=f'{path} has {head["num_classes"]} classes and {dataset["type"]} '
                f'{len(names)}; the config does not name them'
            ),
        )


def _fit_masks(model: dict[str, Any], data: Data, report: Report) -> None:
    """Remove a mask head that has no masks to learn from, which stops training in mmdet 2 too."""
    roi = model.get('roi_head')
    annotations = data.pipelines.annotations or {}
    if not isinstance(roi, dict) or 'mask_head' not in roi or annotations.get('with_mask'):
        return
    for key in ('mask_head', 'mask_roi_extractor'):
        roi.pop(key, None)
    report.change(
        'model.roi_head.mask_head: left out, since the training pipeline loads no masks '
        '(LoadAnnotations has no with_mask=True); what remains learns boxes'
    )


def _leave_out_rest(
    settings: dict[str, Any], names: set[str], cfg: dict[str, Any], report: Report
) -> None:
    """Report the settings that nothing took, except for variables of the files."""
    seen = {json.dumps(node, default=str) for node in _nodes(cfg)}
    for key, value in settings.items():
        variable = key in names or key in ('data_root', 'dataset_type', 'img_norm_cfg')
        pipeline = key.endswith('_pipeline')
        if value is None or variable or pipeline or json.dumps(value, default=str) in seen:
            continue
        report.leave_out('', {key: value})


def _nodes(node: Any) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node
    found = [node]
    if isinstance(node, (dict, list, tuple)):
        for child in children:
            found += _nodes(child)
    return found


def _header(path: Path, report: Report) -> str:
    lines = [f'# Migrated from {path.name} by focal-mm migrate.']
    if report.unknown:
        lines.append('# Not understood, and left out:')
        lines += [f'#   {describe(key, value)}' for key, value in report.unknown]
    return '\n'.join(lines) + '\n'


def describe(key: str, value: Any) -> str:
    """Return a setting in one line of at most 90 columns."""
    text = f'{key} = {value!r}'
    return text if len(text) <= 90 else f'{text[:87]}...'
