"""The text of a config that inherits from another one."""

import keyword
from itertools import groupby
from typing import Any

from mmengine.config import Config

_SHORT = 240  # characters of a list of dicts that is written out; a longer one refers to its base


def overrides(base: Config, cfg: Config, constants: dict[str, Any]) -> str:
    """Return the assignments that turn one config into another one.

    A value that equals a constant is written by the constant's name, and a text that starts with
    the constant ``data_root`` as a sum.

    Args:
        base (Config): The config that is inherited.
        cfg (Config): The other one. It has all keys of the base.
        constants (dict): Variables that are assigned before, by name.

    Returns:
        str: Python code, formatted by yapf.
    """
    writer = _Writer(constants)
    lines: dict[str, str] = {}
    for key, value in cfg._cfg_dict.items():
        if key in constants:
            continue
        text = writer.changes(base._cfg_dict.get(key), value, f'_base_.{key}')
        if text is not None:
            same = (o for o, written in lines.items() if written == text and cfg[o] == value)
            lines[key] = next(same, text) if len(text) > 20 else text
    return format_code(''.join(f'{key} = {text}\n' for key, text in lines.items()))


def format_code(code: str) -> str:
    """Return Python code, formatted by yapf with lines of 100 characters."""
    from yapf.yapflib.yapf_api import FormatCode

    style = dict(
        based_on_style='facebook',
        column_limit=100,
        each_dict_entry_on_separate_line=True,
        split_before_first_argument=True,
        blank_line_before_nested_class_or_def=False,
    )
    text, _ = FormatCode(code, style_config=style)
    return text


class _Writer:
    """Writes values and changes of values as Python expressions."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.constants = constants

    def changes(self, old: Any, new: Any, path: str, key: str = '') -> str | None:
        """Return the expression that turns ``old``, at ``path``, into ``new``; None: no change.

        Args:
            old (Any): Value of the base.
            new (Any): Value of the other config.
            path (str): Expression of the value of the base.
            key (str): Key of the value, as for :meth:`value`. Default: none.
        """
        if type(old) is type(new) and old == new:
            return None
        if isinstance(new, dict):
            if not isinstance(old, dict) or not _own(old).keys() <= new.keys():
                return self.value(new) if old is None else self._instead(old, new, path)
            parts = {
                key: self.changes(old.get(key), new[key], _at(path, key), key) for key in _own(new)
            }
            return self._dict({key: text for key, text in parts.items() if text is not None})
        if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)):
            return self._list(old, new, path)
        return self.value(new, key)

    def _instead(self, old: Any, new: dict, path: str) -> str:
        """Return a dict that replaces the base's, with its long values by reference."""
        parts = dict(_delete_='True')
        for key, value in _own(new).items():
            parts[key] = self.value(value, key)
            if len(parts[key]) > 80 and _is_dict(old) and old.get(key) == value:
                parts[key] = _at(path, key)
        return self._dict(parts)

    def _list(self, old: Any, new: Any, path: str) -> str:
        text = self.value(new)
        if len(text) < _SHORT or len(new) < len(old) or not all(map(_is_dict, (*old, *new))):
            return text
        changed = [self._item(*pair, _at(path, i)) for i, pair in enumerate(zip(old, new))]
        items = {one.replace(_at(path, i), 'item') for i, one in enumerate(changed) if one}
        if len(items) == 1 and all(changed) and len(old) == len(new) > 1:
            return f'[{items.pop()} for item in {path}]'
        parts, start = [], 0  # start of a run of items that are the base's
        for i, one in enumerate(changed):
            if one is not None:
                parts += [f'*{path}[{start or ""}:{i}]'] * (i > start) + [one]
                start = i + 1
        if start < len(old):
            parts.append(f'*{path}[{start}:]' if start else f'*{path}')
        return f'[{", ".join([*parts, *map(self.value, new[len(old) :])])}]'

    def _item(self, old: dict, new: dict, path: str) -> str | None:
        """Return an item of a list as its base with some keys replaced; None: no change."""
        if _own(old) == _own(new):
            return None
        if not _own(old).keys() <= new.keys():
            return self.value(new)
        parts = []
        for key in _own(new):
            if key in old and type(old[key]) is type(new[key]) and old[key] == new[key]:
                continue
            if _is_dict(old.get(key)) and _is_dict(new[key]):
                inner = self._item(old[key], new[key], _at(path, key))
            else:
                inner = self.value(new[key], key)
            parts.append(f'{key}={inner}')
        return f'dict({", ".join([path, *parts])})'

    def value(self, value: Any, key: str = '') -> str:
        """Return a value as an expression.

        Args:
            value (Any): A value of a config.
            key (str): Its key in a dict: a number is a constant only if it counts the same.
                Default: none.
        """
        for name, constant in self.constants.items():
            named = not isinstance(value, int) or key.removeprefix('num_').endswith('classes')
            if named and isinstance(value, type(constant)) and value == constant:
                return name
        root = self.constants.get('data_root')
        if isinstance(value, str) and root and value.startswith(root):
            return f'data_root + {value[len(root) :]!r}'
        if isinstance(value, dict):
            return self._dict({key: self.value(one, key) for key, one in _own(value).items()})
        if isinstance(value, (list, tuple)):
            runs = [(one, len(list(run))) for one, run in groupby(value)]
            if isinstance(value, list) and len(value) > 8 and len(runs) < 4:  # weights of classes
                return ' + '.join(f'[{self.value(one)}] * {count}' for one, count in runs)
            inner = ', '.join(map(self.value, value))
            if isinstance(value, tuple):
                return f'({inner},)' if len(value) == 1 else f'({inner})'
            return f'[{inner}]'
        return repr(value)

    @staticmethod
    def _dict(parts: dict[Any, str]) -> str:
        if all(isinstance(key, str) and key.isidentifier() for key in parts) and not any(
            map(keyword.iskeyword, parts)
        ):
            return f'dict({", ".join(f"{key}={text}" for key, text in parts.items())})'
        return f'{{{", ".join(f"{key!r}: {text}" for key, text in parts.items())}}}'


def _own(node: dict) -> dict:
    """Return a dict without the scope that mmengine notes in what is inherited from a package."""
    return {key: value for key, value in node.items() if key != '_scope_'}


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _at(path: str, key: Any) -> str:
    plain = isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
    return f'{path}.{key}' if plain else f'{path}[{key!r}]'
