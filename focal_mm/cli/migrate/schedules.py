"""Optimizers, schedules, hooks and runtime settings of mmcv 1 in the words of mmengine."""

from typing import Any

from .report import Report

_EMA = ('EMAHook', 'ExpMomentumEMAHook')
_HOOK_LOGGERS = dict(
    TensorboardLoggerHook='TensorboardVisBackend',
    WandbLoggerHook='WandbVisBackend',
    MMDetWandbHook='WandbVisBackend',
    MMSegWandbHook='WandbVisBackend',
    MlflowLoggerHook='MLflowVisBackend',
    ClearMLLoggerHook='ClearMLVisBackend',
    NeptuneLoggerHook='NeptuneVisBackend',
    DvcliveLoggerHook='DVCLiveVisBackend',
)


def pop(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """Take a dict out of the settings, a copy; an empty one if it is missing or None."""
    return dict(settings.pop(key, None) or {})


def translate_runner(settings: dict[str, Any], report: Report) -> tuple[dict[str, Any], int, bool]:
    """Take the runner and the interval of evaluation out of the settings.

    Returns:
        tuple: The training loop, its length, and whether that is in epochs.
    """
    runner = pop(settings, 'runner')
    epochs = runner.pop('max_epochs', None) or settings.pop('total_epochs', None)
    iterations = runner.pop('max_iters', None) or settings.pop('total_iters', None)
    settings.pop('total_epochs', None)
    kind = runner.pop('type', 'EpochBasedRunner' if epochs else 'IterBasedRunner')
    if kind not in ('EpochBasedRunner', 'EpochBasedRunnerAmp', 'IterBasedRunner'):
        report.leave_out('runner', dict(type=kind))
    report.leave_out('runner', runner)
    if not epochs and not iterations:
        raise ValueError(
            'runner: neither max_epochs nor max_iters; say runner=dict(type="EpochBasedRunner", '
            'max_epochs=12) or --cfg-options runner.max_epochs=12'
        )
    evaluation = settings.get('evaluation') or {}
    loop = (
        dict(type='EpochBasedTrainLoop', max_epochs=epochs)
        if epochs
        else dict(type='IterBasedTrainLoop', max_iters=iterations)
    )
    loop['val_interval'] = evaluation.pop('interval', 1)
    if (start := evaluation.pop('start', None)) is not None:
        loop['val_begin'] = start
    if dynamic := evaluation.pop('dynamic_intervals', None):
        loop['dynamic_intervals'] = dynamic
    return loop, epochs or iterations, bool(epochs)


def translate_optimizer(settings: dict[str, Any], report: Report) -> dict[str, Any]:
    """Take the optimizer and the precision out of the settings; return the optimizer wrapper."""
    optimizer = pop(settings, 'optimizer')
    if not optimizer:
        raise ValueError(
            "optimizer: missing; say optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05)"
        )
    wrapper: dict[str, Any] = dict(type='OptimWrapper')
    paramwise, constructor = optimizer.pop('paramwise_cfg', None), optimizer.pop('constructor', '')
    wrapper['optimizer'] = optimizer
    if paramwise:
        wrapper['paramwise_cfg'] = paramwise
    if constructor not in ('', 'DefaultOptimizerConstructor'):
        wrapper['constructor'] = constructor.replace(
            'LayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor'
        )
    hook, fp16 = pop(settings, 'optimizer_config'), pop(settings, 'fp16')
    kind = hook.pop('type', 'OptimizerHook')
    if clip := hook.pop('grad_clip', None):
        wrapper['clip_grad'] = clip
    steps = hook.pop('update_interval', None) or hook.pop('cumulative_iters', None) or 1
    if steps > 1:
        wrapper['accumulative_counts'] = steps
    apex = hook.pop('use_fp16', False) and kind == 'DistOptimizerHook'
    half = 'Fp16' in kind or bool(fp16) or apex
    if half:
        wrapper['type'] = 'AmpOptimWrapper'
        scale = fp16.pop('loss_scale', hook.pop('loss_scale', None))
        if isinstance(scale, dict):
            scale = {key: value for key, value in scale.items() if key != 'mode'}
        if scale is not None:
            wrapper['loss_scale'] = scale
    for key in ('coalesce', 'bucket_size_mb', 'distributed', 'detect_anomalous_params'):
        hook.pop(key, None)  # how processes exchange gradients, which is now PyTorch's affair
    report.leave_out('optimizer_config', hook)
    report.leave_out('fp16', fp16)
    if 'Hook' not in kind:
        report.leave_out('optimizer_config', dict(type=kind))
    return wrapper


def translate_lr(
    settings: dict[str, Any], length: int, epochs: bool, report: Report
) -> list[dict[str, Any]]:
    """Take the learning rate's schedule out of the settings.

    Args:
        settings (dict): Old settings.
        length (int): Length of the training.
        epochs (bool): Whether that is in epochs, else in iterations.
        report (Report): What is not understood is added.
    """
    old = pop(settings, 'lr_config')
    schedulers: list[dict[str, Any]] = []
    warmup, iterations = old.pop('warmup', None), old.pop('warmup_iters', 0)
    ratio, by_epoch = old.pop('warmup_ratio', 0.1), old.pop('warmup_by_epoch', False)
    if warmup:
        if warmup == 'exp':
            report.change('lr_config.warmup: the exponential warm-up becomes a linear one')
        factor = 'factor' if warmup == 'constant' else 'start_factor'
        schedulers.append(
            {
                'type': 'ConstantLR' if warmup == 'constant' else 'LinearLR',
                factor: ratio,
                'by_epoch': by_epoch,
                'begin': 0,
                'end': iterations,
            }
        )
    policy = str(old.pop('policy', 'fixed'))
    span: dict[str, Any] = dict(by_epoch=old.pop('by_epoch', True), begin=0, end=length)
    if not epochs:
        span['by_epoch'] = False
    same_unit = bool(warmup) and by_epoch == span['by_epoch']
    name = policy.lower()
    if name == 'step':
        if 'step' not in old:
            raise ValueError('lr_config.step: missing; say lr_config=dict(step=[8, 11])')
        step, gamma = old.pop('step'), old.pop('gamma', 0.1)
        if isinstance(step, int):
            schedulers.append(dict(type='StepLR', step_size=step, gamma=gamma, **span))
        else:
            schedulers.append(dict(type='MultiStepLR', milestones=list(step), gamma=gamma, **span))
    elif name == 'poly':
        if same_unit:
            span['begin'] = iterations
        least = old.pop('min_lr', 0.0)
        if span['by_epoch'] is False and epochs:
            span = dict(by_epoch=True, begin=0, end=length, convert_to_iter_based=True)
        schedulers.append(dict(type='PolyLR', eta_min=least, power=old.pop('power', 1.0), **span))
    elif name == 'cosineannealing':
        if same_unit:
            span['begin'] = iterations
        if not span['by_epoch'] and epochs:
            span = dict(by_epoch=True, begin=0, end=length, convert_to_iter_based=True)
        least = (
            dict(eta_min_ratio=old.pop('min_lr_ratio'))
            if old.get('min_lr_ratio') is not None
            else dict(eta_min=old.pop('min_lr', None) or 0.0)
        )
        schedulers.append(
            dict(type='CosineAnnealingLR', T_max=length - span['begin'], **least, **span)
        )
    elif name == 'exp':
        schedulers.append(dict(type='ExponentialLR', gamma=old.pop('gamma'), **span))
    elif name != 'fixed':
        old['policy'] = policy
    report.leave_out('lr_config', {key: value for key, value in old.items() if value is not None})
    return schedulers


def translate_hooks(
    settings: dict[str, Any], epochs: bool, evaluation: dict[str, Any], report: Report
) -> dict[str, Any]:
    """Take hooks, loggers and the runtime out of the settings.

    Args:
        settings (dict): Old settings.
        epochs (bool): Whether training counts epochs, else iterations.
        evaluation (dict): Rest of the old ``evaluation``; the best checkpoint is taken out.
        report (Report): What is not understood is added.

    Returns:
        dict: ``default_hooks``, ``custom_hooks``, ``env_cfg`` and the other settings that are left.
    """
    new: dict[str, Any] = {}
    hooks = new['default_hooks'] = {}
    checkpoint = pop(settings, 'checkpoint_config')
    for key in ('create_symlink', 'meta'):
        checkpoint.pop(key, None)  # mmengine writes last_checkpoint, and names of classes itself
    for key in ('save_best', 'rule'):
        if evaluation.get(key) is not None:
            best = evaluation.pop(key)
            hooks_best = _best(best) if key == 'save_best' else best
            checkpoint[key] = hooks_best
    checkpoint['by_epoch'] = epochs
    hooks['checkpoint'] = dict(type='CheckpointHook', **checkpoint)
    log = pop(settings, 'log_config')
    hooks['logger'] = dict(type='LoggerHook', interval=log.pop('interval', 10))
    if not epochs:
        hooks['logger']['log_metric_by_epoch'] = False
    backends = [dict(type='LocalVisBackend')]
    for i, hook in enumerate(log.pop('hooks', ())):
        backends += _log_hook(dict(hook), f'log_config.hooks[{i}]', report)
    report.leave_out('log_config', log)
    custom = [
        _custom_hook(dict(hook), f'custom_hooks[{i}]', report)
        for i, hook in enumerate(settings.pop('custom_hooks', None) or [])
    ]
    if custom:
        new['custom_hooks'] = custom
    if len(backends) > 1:
        new['vis_backends'] = backends
    new.update(_runtime(settings, report))
    return new


def _best(metric: str) -> str:
    """Return today's name of a metric of mmdet 2 or mmseg 0, ``bbox_mAP`` or ``mIoU``."""
    return f'coco/{metric}' if metric.startswith(('bbox_', 'segm_')) else metric


def _log_hook(hook: dict[str, Any], path: str, report: Report) -> list[dict[str, Any]]:
    kind = hook.pop('type')
    for key in ('by_epoch', 'interval', 'ignore_last', 'reset_flag', 'log_checkpoint'):
        hook.pop(key, None)
    if kind == 'TextLoggerHook':
        report.leave_out(path, hook)
        return []
    if kind not in _HOOK_LOGGERS:
        report.leave_out(path, dict(hook, type=kind))
        return []
    known = {'init_kwargs', 'log_dir', 'exp_name', 'tags'}
    settings = {key: hook.pop(key) for key in known & {*hook}}
    if 'log_dir' in settings:
        settings['save_dir'] = settings.pop('log_dir')
    report.leave_out(path, hook)
    return [dict(type=_HOOK_LOGGERS[kind], **settings)]


def _custom_hook(hook: dict[str, Any], path: str, report: Report) -> dict[str, Any]:
    if hook['type'] not in _EMA:
        return hook
    new: dict[str, Any] = dict(type='EMAHook')
    if hook.pop('type') == 'ExpMomentumEMAHook':
        new.update(ema_type='ExpMomentumEMA', update_buffers=not hook.pop('skip_buffers', False))
        if 'total_iter' in hook:
            new['gamma'] = hook.pop('total_iter')
    elif 'warm_up' in hook:
        hook['gamma'] = hook.pop('warm_up')
        new['ema_type'] = 'ExpMomentumEMA'
        report.change(f'{path}: the warm-up of the average becomes an exponential one')
    for key in ('momentum', 'interval', 'priority', 'gamma'):
        if key in hook:
            new[key] = hook.pop(key)
    if hook.get('resume_from') is None:
        hook.pop('resume_from', None)  # mmengine's checkpoints hold the average
    report.leave_out(path, hook)
    return new


def _runtime(settings: dict[str, Any], report: Report) -> dict[str, Any]:
    new: dict[str, Any] = {}
    processes = dict(
        mp_start_method=settings.pop('mp_start_method', 'fork'),
        opencv_num_threads=settings.pop('opencv_num_threads', 0),
    )
    distributed = pop(settings, 'dist_params') or dict(backend='nccl')
    port = distributed.pop('port', None)
    if port is not None:
        report.change(f'dist_params.port={port}: now the launcher chooses the port')
    new['env_cfg'] = dict(
        cudnn_benchmark=bool(settings.pop('cudnn_benchmark', False)),
        mp_cfg=processes,
        dist_cfg=distributed,
    )
    new['log_level'] = settings.pop('log_level', 'INFO')
    resume = settings.pop('resume_from', None)
    new['load_from'] = resume or settings.pop('load_from', None)
    settings.pop('load_from', None)
    new['resume'] = bool(resume) or bool(settings.pop('auto_resume', False))
    flow = settings.pop('workflow', [('train', 1)])
    if [tuple(part) for part in flow] != [('train', 1)]:
        report.leave_out('', dict(workflow=flow))
    seed = settings.pop('seed', None)
    deterministic = settings.pop('deterministic', False)
    if seed is not None:
        new['randomness'] = dict(seed=seed)
        if deterministic:
            new['randomness']['deterministic'] = True
    for key in ('find_unused_parameters', 'work_dir'):
        if settings.get(key):
            new[key] = settings[key]
        settings.pop(key, None)
    for key in ('gpu_ids', 'gpus', 'device', 'local_rank', 'launcher', 'non_distributed'):
        settings.pop(key, None)  # of one run, in the file that training wrote
    return new
