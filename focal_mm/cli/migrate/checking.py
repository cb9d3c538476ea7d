"""Whether what a config builds exists today, with the arguments that it gives."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mmengine.registry import Registry

from .report import Report

# The registries of the types below a key of a config.
_TOP_LEVEL = dict(
    model=('MODELS', 'TASK_UTILS'),
    tta_model=('MODELS',),
    tta_pipeline=('TRANSFORMS',),
    val_evaluator=('METRICS',),
    test_evaluator=('METRICS',),
    optim_wrapper=('OPTIM_WRAPPERS',),
    param_scheduler=('PARAM_SCHEDULERS',),
    default_hooks=('HOOKS',),
    custom_hooks=('HOOKS',),
    vis_backends=('VISBACKENDS',),
    visualizer=('VISUALIZERS',),
    train_cfg=('LOOPS',),
    val_cfg=('LOOPS',),
    test_cfg=('LOOPS',),
)
# The same below a key anywhere outside of the model.
_NESTED = dict(
    dataset=('DATASETS',),
    datasets=('DATASETS',),
    pipeline=('TRANSFORMS',),
    sampler=('DATA_SAMPLERS',),
    batch_sampler=('DATA_SAMPLERS',),
    optimizer=('OPTIMIZERS',),
    vis_backends=('VISBACKENDS',),
)
# Arguments that the runner and the registries of mmengine give or take themselves.
_OF_MMENGINE = {'type', '_scope_', 'priority', 'paramwise_cfg', 'constructor'}
# Below these keys are settings of layers and ops, which have registries and arguments of their own.
_LAYERS = {'roi_layer', 'nms', 'dcn', 'plugins', 'bbox_params'}


def registries_of(path: str, above: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the registries that have the type of a dict.

    Args:
        path (str): Key of the dict in its config, as ``'model.neck'``.
        above (tuple[str, ...]): The registries of the dict that it is in.
    """
    if path.startswith('model.'):
        return above
    if '.' not in path and '[' not in path:
        return _TOP_LEVEL.get(path, ())
    return _NESTED.get(path.rpartition('.')[2].partition('[')[0], above)


class Types:
    """The classes that a library builds today.

    Args:
        library (str): ``'mmdet'`` or ``'mmseg'``.
    """

    def __init__(self, library: str) -> None:
        import_module(f'{library}.utils').register_all_modules(init_default_scope=False)
        self.registries = import_module(f'{library}.registry')
        self.found: dict[tuple[str, tuple[str, ...]], type | None] = {}

    def registry(self, name: str) -> Registry:
        """Return a registry of the library by its name, as ``'MODELS'``."""
        return getattr(self.registries, name)

    def find(self, kind: str, names: tuple[str, ...]) -> type | None:
        """Return a class by its name in a config, or None."""
        if (kind, names) not in self.found:
            classes = (self.registry(name).get(kind) for name in names)
            self.found[kind, names] = next((cls for cls in classes if cls is not None), None)
        return self.found[kind, names]

    def nodes(
        self, node: Any, path: str = '', names: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, dict[str, Any], type | None]]:
        """Yield each dict with a type: its key, itself, and its class, None for no such class.

        Args:
            node (Any): Part of a config.
            path (str): Its key. Default: ``''``, the whole config.
            names (tuple[str, ...]): Registries of its type. Default: none.
        """
        if isinstance(node, dict):
            if names and isinstance(node.get('type'), str):
                yield path, node, self.find(node['type'], names)
            for key, child in list(node.items()):
                layer = (key.endswith(('_cfg', '_trans')) and path) or key in _LAYERS
                if layer and key not in ('train_cfg', 'test_cfg'):
                    continue
                if node.get('type') == 'Albu':  # its transforms are those of albumentations
                    continue
                below = f'{path}.{key}' if path else key
                yield from self.nodes(child, below, registries_of(below, names))
        elif isinstance(node, (list, tuple)):
            for i, child in enumerate(node):
                yield from self.nodes(child, f'{path}[{i}]', names)

    def remove_unknown(self, cfg: dict[str, Any], report: Report) -> None:
        """Take arguments that a class does not have out of a config, into the report.

        A type that does not exist stays, because a project may have it; it is reported as well.
        """
        for path, node, found in self.nodes(cfg):
            if found is None:
                report.leave_out(path, dict(type=node['type']))
                continue
            known = arguments(found)
            if known is None:
                continue
            unknown = {key: node[key] for key in node if key not in known | _OF_MMENGINE}
            for key in unknown:
                del node[key]
            report.leave_out(path, unknown)


def arguments(found: Any) -> set[str] | None:
    """Return the names of the arguments of a class, or None if it takes any.

    A class with ``**kwargs`` may pass them on to any of its bases.
    """
    names: set[str] = set()
    passed_on, closed = False, False
    for cls in found.__mro__[:-1] if inspect.isclass(found) else [found]:
        function = cls.__dict__.get('__init__') if inspect.isclass(cls) else cls
        if function is None:
            continue
        parameters = inspect.signature(function).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            closed = True
            if not passed_on:
                break
        passed_on = True
    return names if closed else None


def defaults(found: Any) -> dict[str, Any]:
    """Return the arguments of a class that have defaults, with these."""
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
