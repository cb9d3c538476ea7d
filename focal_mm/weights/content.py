"""What OpenMMLab does with a checkpoint beside loading its tensors, and what it must not do.

mmengine runs the text of a config that a checkpoint has, deletes the files that it names as the
best ones, and takes names of classes of any type. Every checkpoint that mmengine loads passes
:func:`secure` first.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import MessageHub, print_log
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string
from torch import Tensor, nn

from .files import walk
from .loading import CheckpointError

# Settings of a config that run code or change the process when they are read.
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')  # with which a name leads a terminal
_ACTING = ('_base_', 'custom_imports', 'env_variables')


def secure(content: Any, file: str | Path) -> Any:
    """Take from the content of a checkpoint what would act on anything but a model.

    Args:
        content (Any): Content of a file; changed in place.
        file (str or Path): The file, for error messages.

    Returns:
        Any: The content.

    Raises:
        CheckpointError: If a weight is NaN or infinite, or what the file says of classes is of
            another type.
    """
    if not isinstance(content, dict):
        return content
    _check_numbers(content, file)
    meta, hub = content.get('meta'), content.get('message_hub')
    info = hub.runtime_info if isinstance(hub, MessageHub) else None
    if isinstance(hub, dict):
        info = hub.get('runtime_info')
    for name, value in (('meta', meta), ("message_hub['runtime_info']", info)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(
                f'{file}: {name} is a {type(value).__name__}, not a dict; {_WEIGHTS_ALONE}'
            )
    if meta:
        _check_classes(meta, file)
    for place in (meta or {}, info or {}):
        for key in ('config', 'cfg'):
            if key in place and not _only_sets_values(place[key]):
                del place[key]
                print_log(
                    f'{file}: its {key} is more than settings, and would run code; it is left out',
                    'current',
                    level=30,
                )
    if info:
        _forget_foreign_files(info, file)
    return content


_WEIGHTS_ALONE = 'take its weights alone: focal-mm weights convert FILE NEW.pth'


def _check_numbers(content: dict, file: str | Path) -> None:
    """Raise a CheckpointError if a weight is no number."""
    weights = [
        (str(key), value)
        for place in (content, *content.values())
        if isinstance(place, dict)
        for key, value in place.items()
        if isinstance(value, Tensor)
    ]
    if odd := [key for key, _ in weights if _CONTROL.search(key)]:
        raise CheckpointError(f'{file}: {odd[0]!r} is no name of a tensor; {_WEIGHTS_ALONE}')
    bad = [key for key, value in weights if not _is_finite(key, value)]
    if bad:
        raise CheckpointError(
            f'{file}: {bad[0]} is NaN or infinite ({len(bad)} of {len(weights)} tensors are), so '
            'the training that wrote it had failed; take an earlier checkpoint'
        )


def _is_finite(key: str, value: Tensor) -> bool:
    """Return whether a tensor has numbers; in a mask minus infinity is one."""
    if not value.is_floating_point() or value.is_quantized or value.is_meta:
        return True
    value = value.coalesce().values() if value.is_sparse else value
    if value.isfinite().all():
        return True
    is_weight = key.endswith(('weight', 'bias', 'running_mean', 'running_var'))
    return not is_weight and not bool(value.isnan().any() or value.isposinf().any())


def _check_classes(meta: dict, file: str | Path) -> None:
    """Raise a CheckpointError if names or colors of classes have another type."""
    data = meta.get('dataset_meta')
    if data is not None and not (isinstance(data, dict) and all(isinstance(k, str) for k in data)):
        raise CheckpointError(f"{file}: meta['dataset_meta'] is no dict; {_WEIGHTS_ALONE}")
    for place in (meta, data or {}):
        for key, value in place.items():
            name = str(key).lower()
            if value is None or (place is meta and not str(key).isupper()):
                continue
            if name == 'classes' and not _is_names(value):
                raise CheckpointError(
                    f'{file}: {key} of its meta are no names ({_describe(value)}); {_WEIGHTS_ALONE}'
                )
            if name == 'palette' and not (isinstance(value, str) or _is_colors(value)):
                raise CheckpointError(
                    f'{file}: {key} of its meta are no colors ({_describe(value)}); '
                    f'{_WEIGHTS_ALONE}'
                )


def _describe(value: object) -> str:
    return repr(value)[:60]


def _is_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else _items(value)
    return all(isinstance(name, str) and not _CONTROL.search(name) for name in names)


def _is_colors(value: Any) -> bool:
    return all(
        len(items := list(_items(color))) == 3
        and all(not isinstance(item, str) and 0 <= item <= 255 for item in items)
        for color in _items(value)
    )


def _items(value: Any) -> Iterator[Any]:
    """Yield the items of a list, a tuple or an array; something else than one for other values."""
    if hasattr(value, 'tolist'):
        value = value.tolist()
    yield from value if isinstance(value, (list, tuple)) else (None,)


def _only_sets_values(text: Any) -> bool:
    """Return whether the text of a config does no more than to set values.

    It may name modules to import if they are imported already, as focal_mm is, and types that a
    registry has.
    """
    if not isinstance(text, str):
        return False
    try:
        settings = dict(_settings(ast.parse(text)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    types = [node.get('type') for node in walk(settings) if isinstance(node, dict)]
    if any('trust_remote_code' in node for node in walk(settings) if isinstance(node, dict)):
        return False
    if not all(_is_of_a_registry(name) for name in types if name is not None):
        return False
    imports = settings.pop('custom_imports', None) or {}
    modules = imports.get('imports') if isinstance(imports, dict) else [None]
    modules = [modules] if isinstance(modules, str) else modules or []
    return settings.keys().isdisjoint(_ACTING) and all(name in sys.modules for name in modules)


def _is_of_a_registry(name: Any) -> bool:
    """Return whether a registry gives nothing but what is registered for a type in a config.

    For other names it imports modules, and returns any function in them: ``os.system``.
    """
    if not isinstance(name, str):
        return False
    package, *path = name.split('.')
    try:
        if not path:
            return find_spec(name) is None
        if f'{package}.registry' not in sys.modules and package not in (*MODULE2PACKAGE, 'torch'):
            return False
        if len(path) == 1 and package not in sys.modules:  # which takes seconds to import
            return True
        found = get_object_from_string(name)
    except Exception:  # whatever a module raises when it is imported
        return False
    if found is None:  # such as mmdet.ResNet
        return True
    return isinstance(found, type) and (issubclass(found, nn.Module) or _is_registered(found))


def _is_registered(cls: type) -> bool:
    """Return whether a registry of an imported library has a class."""
    registries = [value for value in vars(registry).values() if isinstance(value, Registry)]
    for one in registries:  # grows
        registries += one.children.values()
    return any(cls in one.module_dict.values() for one in registries)


def _settings(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that a config sets.

    Raises:
        ValueError: If it does anything else.
    """
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            raise ValueError(f'line {node.lineno}')
        yield node.targets[0].id, ast.literal_eval(_Calls().visit(node.value))


class _Calls(ast.NodeTransformer):
    """Replaces ``dict(a=1)`` and ``dict({1: 2})``, as configs are printed, by literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ''
        if name == 'dict' and not node.args and all(word.arg for word in node.keywords):
            keys: list[ast.expr | None] = [ast.Constant(word.arg) for word in node.keywords]
            values = [self.visit(word.value) for word in node.keywords]
            return ast.copy_location(ast.Dict(keys, values), node)
        if name == 'dict' and len(node.args) == 1 and not node.keywords:
            return self.visit(node.args[0])
        return node


def _forget_foreign_files(info: dict, file: str | Path) -> None:
    """Forget the best checkpoints of a run that are not beside this one, since the run deletes them
    once it has a better one.
    """
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(file)))
    for key, value in list(info.items()):
        if str(key).startswith('best_ckpt') and value is not None:
            name = os.path.basename(value) if isinstance(value, str) else ''
            beside = os.path.join(folder, name)
            if name.startswith('best_') and os.path.exists(beside):
                info[key] = beside
            else:
                del info[key]
    ids = info.get('keep_ckpt_ids', [])
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        del info['keep_ckpt_ids']
