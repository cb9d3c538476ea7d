"""Configs of runs: read without running them, and compared with their bases."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config import CONFIGS

_LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain', 'mmpose')
_ABSENT = '–'
# Of a run, not of its recipe; and what mmengine itself adds.
_NOT_COMPARED = ('work_dir', 'launcher', 'resume', '_scope_')


def read_literals(text: str) -> dict[str, Any]:
    """Read a config that mmengine has written into a work folder, without running it.

    Such a config consists of assignments of numbers, texts, lists and dicts.

    Args:
        text (str): Content of the file.

    Raises:
        ValueError: If it has anything else, which only running it would read.
    """
    try:
        return {name: _value(node) for name, node in _assignments(ast.parse(text))}
    except (SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f'it is no config ({error})') from error


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            raise ValueError(f'line {node.lineno} is more than an assignment')
        yield node.targets[0].id, node.value


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if len(node.args) < 2 and all(word.arg for word in node.keywords):
            words = {word.arg: _value(word.value) for word in node.keywords}
            return dict(*map(_value, node.args)) | words
    elif isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key) for key in node.keys if key]
        return dict(zip(keys, map(_value, node.values)))
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = dict(List=list, Tuple=tuple, Set=set)[type(node).__name__]
        return kind(map(_value, node.elts))
    elif isinstance(node, ast.Name) and node.id in ('inf', 'nan'):  # as Python writes them
        return float(node.id)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    elif isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f'line {node.lineno} would have to be run')


def differences(old: dict, new: dict) -> list[list[str]]:
    """Return what differs between two configs.

    Returns:
        list: For each key that differs, with its path joined by dots, the old and the new value as
        texts; a dash where there is none.
    """
    found: list[list[str]] = []
    _compare(old, new, '', found)
    return found


def _compare(old: Any, new: Any, path: str, found: list[list[str]]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            if key in _NOT_COMPARED:
                continue
            inner = f'{path}.{key}' if path else str(key)
            if key not in new:
                found.append([inner, _text(old[key]), _ABSENT])
            elif key not in old:
                found.append([inner, _ABSENT, _text(new[key])])
            else:
                _compare(old[key], new[key], inner, found)
    elif _is_list_of_dicts(old) and _is_list_of_dicts(new) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new)):
            _compare(*pair, f'{path}.{i}', found)
    elif old != new and _text(old) != _text(new):
        found.append([path, _text(old), _text(new)])


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, dict) for one in value)


def _text(value: Any) -> str:
    """Return a value as a text, without the scope that mmengine notes in inherited dicts."""
    if isinstance(value, dict):
        inner = [f'{k}={_text(v)}' for k, v in value.items() if k != '_scope_']
        return f'dict({", ".join(inner)})'
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(_text, value))}]'
    return value.__name__ if isinstance(value, type) else repr(value)


def base_of(filename: str) -> tuple[str, dict]:
    """Return a name for what a config inherits, and its content; of itself if it inherits nothing.

    The config is run, as :meth:`Config.fromfile` does.
    """
    bases = Config._get_base_files(filename)
    merged = Config()
    for base in bases:
        file, _ = Config._get_cfg_path(base, filename)
        merged.merge_from_dict(Config.fromfile(file)._cfg_dict)
    if not bases:
        return filename, Config.fromfile(filename)._cfg_dict
    return f'what {Path(filename).name} inherits: {", ".join(bases)}', merged._cfg_dict


def nearest_config(name: str, content: dict) -> tuple[str, list[list[str]]] | None:
    """Find the installed config of a name that a run's config differs least from.

    Args:
        name (str): Name of the file.
        content (dict): The run's config.

    Returns:
        tuple or None: Name of the config, as ``mmdet::PATH``, and the differences; None if there is
        no config of this name.
    """
    folders = {'focal_mm': CONFIGS}
    for library in _LIBRARIES:
        if (spec := find_spec(library)) and spec.origin:
            folders[library] = Path(spec.origin).parent / '.mim' / 'configs'
    found = []
    for package, folder in folders.items():
        for file in sorted(folder.rglob(name)):
            try:
                base = Config.fromfile(file)._cfg_dict
            except Exception:  # it needs a package that is not installed
                continue
            found.append((f'{package}::{file.relative_to(folder)}', differences(base, content)))
    return min(found, key=lambda one: len(one[1]), default=None)
