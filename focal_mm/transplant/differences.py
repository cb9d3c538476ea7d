"""The lines that tell what a change of a config has done."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import ConfigDict

from ..config import type_name


def _brief(value: Any, most: int = 300) -> str:
    if isinstance(value, dict) and 'type' in value:
        rest = [f'{key}={_brief(item)}' for key, item in value.items() if key != 'type']
        text = f'{type_name(value)}({", ".join(rest)})'
    else:
        text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= most else f'{text[: most - 3]}...'


def differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    """Yield a line for each setting that differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get('type') and new.get('type') and type_name(old) != type_name(new):
            yield f'{path}: {_brief(old, 60)} -> {_brief(new)}'
            return
        added = [key for key in new if key not in old]
        for key in old:
            place = f'{path}.{key}'.lstrip('.')
            if key not in new:
                yield f'{place}: left out, was {_brief(old[key], 60)}'
            else:
                yield from differences(old[key], new[key], place)
        for key in added[:3]:
            yield f'{path}.{key}: {_brief(new[key])}'.lstrip('.')
        if added[3:]:
            yield f'{path}: and {len(added) - 3} more like {added[-1]}'
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if len(old) == len(new) and any(isinstance(item, dict) for item in old):
            for i, (a, b) in enumerate(zip(old, new)):
                yield from differences(a, b, f'{path}.{i}')
        elif list(old) != list(new):
            yield f'{path}: {_brief(old)} -> {_brief(new)}'
    elif old != new:
        yield f'{path}: {_brief(old)} -> {_brief(new)}'
