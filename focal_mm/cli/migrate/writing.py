"""The text of a config: what it changes in the nearest of our bases or the library's."""

import copy
import sys
from collections.abc import Iterator
from functools import cache
from keyword import iskeyword
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from ...config import CONFIGS
from .bases import config_folder
from .checking import Types, defaults, registries_of

_WIDTH = 100
# What each kind of base sets; the rest is the runtime's.
_PARTS = dict(
    models=('model',),
    datasets=(
        *('data_root', 'train_dataloader', 'val_dataloader', 'test_dataloader'),
        *('val_evaluator', 'test_evaluator'),
    ),
    schedules=(
        *('train_cfg', 'val_cfg', 'test_cfg', 'param_scheduler', 'optim_wrapper'),
        'auto_scale_lr',
    ),
)
_ORDER = (
    *('custom_imports', 'default_scope', 'data_root', 'model'),
    *('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'),
    *('train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr'),
)
# Pairs whose second is written as the first if both are the same.
_TWINS = dict(test_dataloader='val_dataloader', test_evaluator='val_evaluator')


class Name(str):
    """A variable, which is written without quotes."""


class Writer:
    """Writes configs of one library.

    Args:
        library (str): ``'mmdet'`` or ``'mmseg'``.
        types (Types): The library's classes.
    """

    def __init__(self, library: str, types: Types) -> None:
        self.library = library
        self.types = types
        self.configs = config_folder(library)

    def write(self, cfg: dict[str, Any]) -> tuple[str, list[str]]:
        """Return the shortest text of a config, and the bases that it starts from.

        Args:
            cfg (dict): All settings that the new config shall have.
        """
        self._load_bases(cfg)
        candidates = [([], {}), *self._own_configs(cfg), self._parts(cfg)]
        texts = [(self._text(cfg, base, names), names) for names, base in candidates]
        return min(texts, key=lambda pair: len(pair[0]))

    def _load_bases(self, cfg: dict[str, Any]) -> None:
        """Read all candidates, which takes seconds, behind a progress bar."""
        paths = [*_own_paths(cfg), *self.configs.glob('_base_/*/*.py')]
        for path in track(
            paths,
            'Comparing with bases',
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ):
            _load(path)

    def _own_configs(self, cfg: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Yield our configs of the same backbone and model."""
        for path in _own_paths(cfg):
            base = _load(path)
            if base['model']['type'] == cfg['model']['type']:
                yield [f'focal_mm::{path.relative_to(CONFIGS).as_posix()}'], base

    def _parts(self, cfg: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """Return the library's bases with which the text of each part is shortest."""
        names, merged = [], {}
        for folder, keys in _PARTS.items():
            part = {key: cfg[key] for key in keys if key in cfg}
            best, base_of_best = self._text(part, {}, []), None
            for path in sorted((self.configs / '_base_' / folder).glob('*.py')):
                base = _load(path)
                if (
                    folder == 'models'
                    and base.get('model', {}).get('type') != part['model']['type']
                ):
                    continue
                text = self._text(part, base, [])
                if len(text) < len(best):
                    best, base_of_best = text, (path, base)
            if base_of_best:
                path, base = base_of_best
                names.append(f'{self.library}::{path.relative_to(self.configs).as_posix()}')
                merged.update(base)
        runtime = self.configs / '_base_' / 'default_runtime.py'
        names.append(f'{self.library}::_base_/default_runtime.py')
        return names, {**merged, **_load(runtime)}

    def _text(self, cfg: dict[str, Any], base: dict[str, Any], names: list[str]) -> str:
        own = {}
        for key in sorted(cfg, key=lambda k: _ORDER.index(k) if k in _ORDER else len(_ORDER)):
            change = self._change(cfg[key], base.get(key, _MISSING), key, ())
            if change is not _SAME:
                own[key] = change
        lines = []
        if names:
            bases = names if len(names) > 1 else names[0]
            lines.append(f'_base_ = {literal(bases, len("_base_ = "))}\n')
        own = self._name_pipelines(own, lines)
        for twin, first in _TWINS.items():
            if twin in own and own[twin] == own.get(first) and not _deletes(own[twin]):
                own[twin] = Name(first)
        for key, value in own.items():
            lines.append(f'{key} = {literal(value, len(key) + 3)}')
        return '\n'.join(lines) + '\n'

    def _name_pipelines(self, own: dict[str, Any], lines: list[str]) -> dict[str, Any]:
        """Return the settings with pipelines as variables, whose lines are added."""
        own = copy.deepcopy(own)
        named: list[tuple[str, Any]] = []
        for key, variable in dict(
            train_dataloader='train_pipeline',
            val_dataloader='test_pipeline',
            test_dataloader='test_pipeline',
        ).items():
            for node in _datasets(own.get(key)):
                if isinstance(node.get('pipeline'), Name) or 'pipeline' not in node:
                    continue
                known = next((n for n, value in named if value == node['pipeline']), None)
                if known is None:
                    taken = [n for n, _ in named]
                    known = variable if variable not in taken else f'{variable}_{len(taken)}'
                    named.append((known, node['pipeline']))
                node['pipeline'] = Name(known)
        lines += [f'{name} = {literal(value, len(name) + 3)}' for name, value in named]
        return own

    def _change(self, new: Any, old: Any, path: str, names: tuple[str, ...]) -> Any:
        """Return what a config must say for ``new`` where its base says ``old``."""
        if old is not _MISSING and self._same(new, old, path, names):
            return _SAME
        if not isinstance(new, dict) or old is _MISSING:
            return new
        if not isinstance(old, dict):
            return dict(_delete_=True, **new)
        names = registries_of(path, names)
        given, known = self._drop_defaults(new, names), self._defaults(new, names)
        missing = {*self._drop_defaults(old, names)} - {*new}
        if ('type' in old and new.get('type') != old['type']) or missing - {*known}:
            return dict(_delete_=True, **new)
        changes = {key: known[key] for key in old if key in missing}
        for key, value in new.items():
            if key in old:
                change = self._change(value, old[key], f'{path}.{key}', names)
                if change is not _SAME:
                    changes[key] = change
            elif key in given:
                changes[key] = value
        replaced = dict(_delete_=True, **new)
        return min(changes, replaced, key=lambda node: len(repr(node)))

    def same(self, new: Any, old: Any, path: str) -> bool:
        """Tell whether two parts of configs build the same, by the defaults of their classes."""
        return self._same(new, old, path, ())

    def _same(self, new: Any, old: Any, path: str, names: tuple[str, ...]) -> bool:
        if isinstance(new, dict) and isinstance(old, dict):
            names = registries_of(path, names)
            new, old = self._drop_defaults(new, names), self._drop_defaults(old, names)
            return new.keys() == old.keys() and all(
                self._same(new[key], old[key], f'{path}.{key}', names) for key in new
            )
        if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)):
            names = registries_of(path, names)
            return len(new) == len(old) and all(
                self._same(a, b, f'{path}[]', names) for a, b in zip(new, old, strict=True)
            )
        return (type(new) is type(old) and new == old) or (_number(new) and new == old)

    def _defaults(self, node: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        found = self.types.find(node['type'], names) if isinstance(node.get('type'), str) else None
        return defaults(found) if found is not None else {}

    def _drop_defaults(self, node: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        known = self._defaults(node, names)
        return {
            key: value
            for key, value in node.items()
            if key != '_scope_'
            and (key not in known or not _equal(known[key], value))
            and not (key == 'backend_args' and value is None)
        }


def _equal(default: Any, value: Any) -> bool:
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return [*default] == [*value]
    return type(default) is type(value) and default == value


_SAME, _MISSING = object(), object()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _own_paths(cfg: dict[str, Any]) -> list[Path]:
    """Return our detectors and segmentors with the family of a config's backbone."""
    prefix = dict(FocalNet='focalnet_', FocalTransformer='focal_', MixFormer='mixformer_')
    kind = cfg['model']['backbone'].get('type')
    return [
        path
        for path in sorted(CONFIGS.glob(f'*/{prefix.get(kind, kind)}*.py'))
        if path.parent.name not in ('imagenet', 'keypoint', 'ablation')
    ]


@cache
def _load(path: Path) -> dict[str, Any]:
    return Config.fromfile(path)._cfg_dict.to_dict()


def _deletes(node: Any) -> bool:
    if isinstance(node, dict):
        return '_delete_' in node or any(map(_deletes, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_deletes, node))


def _datasets(loader: Any) -> Iterator[dict[str, Any]]:
    """Yield every dict with a pipeline in a data loader, the wrappers first."""
    if isinstance(loader, dict):
        if 'pipeline' in loader:
            yield loader
        for key in ('dataset', 'datasets'):
            yield from _datasets(loader.get(key))
    elif isinstance(loader, list):
        for child in loader:
            yield from _datasets(child)


def literal(value: Any, column: int = 0, indent: int = 0) -> str:
    """Write a value as Python, in lines of at most 100 columns where that is possible.

    Args:
        value (Any): Of a config.
        column (int): Where its first line starts. Default: 0.
        indent (int): Spaces before its other lines. Default: 0.
    """
    flat = _flat(value)
    if column + len(flat) < _WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return flat
    inner = indent + 4
    opening, closing = _brackets(value)
    lines = []
    for prefix, child in _items(value):
        text = literal(child, inner + len(prefix), inner)
        lines.append(f'{" " * inner}{prefix}{text},\n')
    return f'{opening}\n{"".join(lines)}{" " * indent}{closing}'


def _flat(value: Any) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, (dict, list, tuple)):
        opening, closing = _brackets(value)
        inner = ', '.join(f'{prefix}{_flat(child)}' for prefix, child in _items(value))
        comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
        return f'{opening}{inner}{comma}{closing}'
    return repr(value)


def _brackets(value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        return ('dict(', ')') if _is_call(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [('', child) for child in value]
    keys = sorted(value, key=lambda key: key != '_delete_')
    keys = sorted(keys, key=lambda key: key not in ('_delete_', 'type'))
    return [(f'{key}=' if _is_call(value) else f'{key!r}: ', value[key]) for key in keys]


def _is_call(value: dict) -> bool:
    return all(isinstance(k, str) and k.isidentifier() and not iskeyword(k) for k in value)
