"""Comparison of a checkpoint with the run that is to go on from it, before anything is loaded."""

import ast
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from .process_state import is_sharded, named_parameters, optim_wrappers, weight_shapes

# Settings of a group of parameters that choose an implementation, not a result.
IMPLEMENTATION = ('foreach', 'fused', 'capturable', 'differentiable')
# State of PyTorch's optimizers that has the shape of its parameter.
_LIKE_PARAMETERS = (
    'exp_avg',
    'exp_avg_sq',
    'max_exp_avg_sq',
    'exp_inf',
    'momentum_buffer',
    'square_avg',
    'grad_avg',
    'acc_delta',
    'sum',
)


def trained_names(runner: Runner) -> list[str]:
    """Return the names of the parameters that are not frozen."""
    return [name for name, parameter in named_parameters(runner) if parameter.requires_grad]


def describe_optimizers(runner: Runner) -> dict[str, dict]:
    """Return, for each optimizer by name, its class and the parameters of each group by name."""
    names = {id(parameter): name for name, parameter in named_parameters(runner)}
    return {
        key: dict(
            type=type(wrapper.optimizer).__name__,
            groups=[
                [names.get(id(parameter), '') for parameter in group['params']]
                for group in wrapper.optimizer.param_groups
            ],
        )
        for key, wrapper in optim_wrappers(runner).items()
    }


def find_misfit(runner: Runner, checkpoint: dict, state: dict | None) -> str | None:
    """Return what of a checkpoint does not fit a runner, or None.

    Args:
        runner (Runner): The runner, with a built model and optimizer.
        checkpoint (dict): The checkpoint.
        state (dict, optional): What our hook has added to it. Without it, as in a checkpoint of
            mmengine, less can be compared.
    """
    problem = next(
        chain(
            _compare_weights(runner, checkpoint),
            _compare_trained(runner, state),
            _compare_optimizers(runner, checkpoint, state),
            _compare_schedulers(runner, checkpoint),
            _compare_averages(runner, checkpoint),
        ),
        None,
    )
    if problem is None:
        return None
    changes = changed_settings(runner, checkpoint)
    return f'{problem} ({changes})' if changes else problem


def changed_settings(runner: Runner, checkpoint: dict) -> str:
    """Return the settings of the model, the optimizer and the schedules that are not those of a
    checkpoint, or ``''``.

    Args:
        runner (Runner): The runner.
        checkpoint (dict): The checkpoint.
    """
    return _some(_compare_configs(checkpoint['meta'].get('cfg'), runner.cfg))


def _compare_weights(runner: Runner, checkpoint: dict) -> Iterator[str]:
    own = weight_shapes(runner)
    parameters = dict(named_parameters(runner))
    given = {name.removeprefix('module.'): v for name, v in checkpoint['state_dict'].items()}
    shapes = [
        f'{name} is {_shape(given[name])} in the checkpoint and {shape} in the model'
        for name, shape in own.items()
        if name in given and _shape(given[name]) != shape
    ]
    missing = [name for name in own if name in parameters and name not in given]
    extra = [name for name in given if name not in own]
    if shapes:
        yield _some(shapes, 1)
    if missing:
        yield f'the checkpoint lacks {_some(missing)}'
    if extra:
        yield f'the model lacks {_some(extra)}'


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, 'shape', ()))


def _compare_trained(runner: Runner, state: dict | None) -> Iterator[str]:
    if state is None:
        return
    ours, theirs = trained_names(runner), state['trained']
    frozen = [name for name in theirs if name not in set(ours)]
    thawed = [name for name in ours if name not in set(theirs)]
    if frozen:
        yield f'frozen now and trained in the checkpoint: {_some(frozen)}'
    if thawed:
        yield f'trained now and frozen in the checkpoint: {_some(thawed)}'


def _compare_optimizers(runner: Runner, checkpoint: dict, state: dict | None) -> Iterator[str]:
    if 'optimizer' not in checkpoint:
        return
    ours = optim_wrappers(runner)
    theirs = {'': checkpoint['optimizer']} if '' in ours else checkpoint['optimizer']
    if '' in ours and 'param_groups' not in checkpoint['optimizer']:
        yield 'the checkpoint has several optimizers, the run has one'
        return
    missing = [name for name in ours if name not in theirs]
    if missing:
        yield f'the checkpoint has no optimizer {_some(missing)}'
        return
    described = describe_optimizers(runner)
    for name, wrapper in ours.items():
        optimizer = wrapper.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            continue
        kind = type(optimizer).__name__
        groups, saved = optimizer.param_groups, theirs[name]['param_groups']
        known = state['optimizers'].get(name) if state else None
        if known and known['type'] != kind:
            yield f'the optimizer is {known["type"]} in the checkpoint and {kind} now'
        settings = set(groups[0]) ^ set(saved[0])
        # What a later PyTorch has added is in all of its optimizers' defaults.
        settings -= {*IMPLEMENTATION, 'initial_lr', 'maximize', 'decoupled_weight_decay'}
        if settings and not known:
            yield f'the optimizer is another one than {kind}: they differ in {_some(settings)}'
        if len(groups) != len(saved):
            yield (
                f'{kind} has {len(saved)} groups of parameters in the checkpoint and '
                f'{len(groups)} now'
            )
            continue
        for number, (own, other) in enumerate(zip(groups, saved)):
            if len(own['params']) != len(other['params']):
                yield (
                    f'group {number} of {kind} has {len(other["params"])} parameters in the '
                    f'checkpoint and {len(own["params"])} now'
                )
        if known and known['groups'] != described[name]['groups']:
            pairs = zip(chain(*known['groups']), chain(*described[name]['groups']))
            yield 'the parameters of {} come in another order: {} where {} was'.format(
                kind, *next((now, was) for was, now in pairs if was != now)
            )
        if not is_sharded(runner):
            yield from _compare_states(kind, groups, theirs[name])


def _compare_states(kind: str, groups: list[dict], saved: dict) -> Iterator[str]:
    ours = chain.from_iterable(group['params'] for group in groups)
    theirs = chain.from_iterable(group['params'] for group in saved['param_groups'])
    for parameter, index in zip(ours, theirs):
        for key, value in saved['state'].get(index, {}).items():
            if (
                key in _LIKE_PARAMETERS
                and isinstance(value, Tensor)
                and value.numel() > 1
                and value.shape != parameter.shape
            ):
                yield (f'{key} of {kind} is {_shape(value)} for a parameter of {_shape(parameter)}')


def _compare_schedulers(runner: Runner, checkpoint: dict) -> Iterator[str]:
    ours, theirs = runner.param_schedulers, checkpoint.get('param_schedulers')
    if ours is None or theirs is None or isinstance(ours, dict) or isinstance(theirs, dict):
        return
    if len(ours) != len(theirs):
        yield f'the checkpoint has {len(theirs)} parameter schedulers and the run {len(ours)}'
    for scheduler, saved in zip(ours, theirs):
        if set(scheduler.state_dict()) != set(saved):
            names = set(scheduler.state_dict()) ^ set(saved)
            yield (
                f'{type(scheduler).__name__} is another scheduler than in the checkpoint: they '
                f'differ in {_some(names)}'
            )


def _compare_averages(runner: Runner, checkpoint: dict) -> Iterator[str]:
    averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    if 'ema_state_dict' in checkpoint and not averaged:
        yield (
            'the weights of the checkpoint are an average of those that were trained, by an '
            'EMAHook, and the run has none'
        )


def _compare_configs(text: str | None, cfg: Config) -> Iterator[str]:
    """Yield the settings of the model and the optimizer that differ in two configs.

    Args:
        text (str, optional): The config of the checkpoint; it is read, not run.
        cfg (Config): The config of the run.
    """
    try:
        old, new = _read(text or ''), _read(cfg.pretty_text)
    except (SyntaxError, ValueError):
        return
    for key in ('model', 'optim_wrapper', 'param_scheduler'):
        was, now = _flatten(key, old.get(key)), _flatten(key, new.get(key))
        for name in {**was, **now}:
            if was.get(name) != now.get(name) and 'init_cfg' not in name:
                yield f'{name} was {was.get(name)!r} and is {now.get(name)!r}'


def _read(text: str) -> dict[str, Any]:
    """Return the values of the names in a dumped config, without running it."""

    class Literal(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            if getattr(node.func, 'id', '') != 'dict':
                raise ValueError(ast.unparse(node))
            if len(node.args) == 1 and not node.keywords:  # dict({'a.b': 1})
                return node.args[0]
            if node.args:
                raise ValueError(ast.unparse(node))
            keys: list[ast.expr | None] = [
                ast.Constant(word.arg) if word.arg else None for word in node.keywords
            ]
            return ast.Dict(keys, [word.value for word in node.keywords])

    values = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            value = ast.fix_missing_locations(Literal().visit(statement.value))
            values[statement.targets[0].id] = ast.literal_eval(value)
    return values


def _flatten(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = [_flatten(f'{name}.{key}', child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list)) for v in value):
        parts = [_flatten(f'{name}.{key}', child) for key, child in enumerate(value)]
    else:
        return {name: value}
    return dict(chain.from_iterable(part.items() for part in parts))


def _some(names: Any, limit: int = 3) -> str:
    names = sorted(names) if isinstance(names, set) else list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
