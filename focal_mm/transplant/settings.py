"""The settings of a model's parts: which are channels or indices of maps."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import ConfigDict

from ..config import dicts, type_name
from .tracing import Map

# Arguments that change neither channels nor strides of a backbone, but need files or compiled ops.
_NOT_PROBED = ('init_cfg', 'pretrained', 'checkpoint', 'dcn', 'stage_with_dcn', 'plugins')


def parts_with_backbone(node: Any, path: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the parts of a model that have a backbone, with their paths; teachers stay."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from parts_with_backbone(child, f'{path}.{i}')
    if not isinstance(node, dict):
        return
    own = isinstance(node.get('backbone'), dict) and 'type' in node['backbone']
    if own:
        yield path, node
    for key, child in node.items():
        if 'teacher' not in key and not (own and key == 'backbone'):
            yield from parts_with_backbone(child, f'{path}.{key}')


def heads(host: ConfigDict) -> list[ConfigDict]:
    """Return the heads of a part of a model: the decoders of a segmentor first."""
    keys = sorted(
        (key for key in host if key.endswith('head')), key=lambda key: key != 'decode_head'
    )
    return [node for key in keys for node in listed(host[key]) if isinstance(node, dict) and node]


def share_map(heads: list[ConfigDict], maps: list[Map], levels: list[Map]) -> None:
    """Make heads in a cascade, of which each takes the output of the one before beside a map, read
    the map of the last head, if their maps have one size only by dilation.
    """
    indices = [head.get('in_index', -1) for head in heads]
    if not all(isinstance(i, int) for i in indices):
        return
    last = maps[indices[-1]]
    same = len({maps[i].stride for i in indices}) == 1 < len({levels[i].stride for i in indices})
    for head in heads if same else ():
        head.update(in_index=indices[-1], in_channels=last.channels)


def probed_settings(backbone: ConfigDict) -> dict:
    """Return the settings that channels and strides of a backbone depend on."""
    settings = {key: value for key, value in backbone.items() if key not in _NOT_PROBED}
    if 'TIMM' in type_name(backbone):
        settings['pretrained'] = False  # otherwise it downloads weights
    return settings


def indexed(head: ConfigDict) -> list[ConfigDict]:
    """Return those parts of a segmentor's head that choose maps by ``in_index``."""
    return [node for node in dicts(head) if 'in_index' in node] or [head]


def listed(value: Any) -> list:
    """Return the items of a list or tuple, one value as a list, and nothing for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _like(value: Any, items: Sequence) -> Any:
    return tuple(items) if isinstance(value, tuple) else list(items)


def replace_settings(node: ConfigDict, new: ConfigDict) -> None:
    """Give a part of a config other settings, in place."""
    node.clear()
    node.update(new)


def set_inputs(node: ConfigDict, old: list[int], kept: list[int], new: list[int]) -> None:
    """Set the channels of the maps that a neck or head takes, and its indices of maps.

    Args:
        node (ConfigDict): Settings of the neck or head, changed in place.
        old (list[int]): Channels of all maps that it got.
        kept (list[int]): Positions of those that it still gets.
        new (list[int]): Their new channels.
    """
    successors = dict(zip(kept, new))
    by_value = {old[i]: c for i, c in successors.items()}
    for part in dicts(node):
        indices = part.get('in_index')
        chosen = [i % len(old) for i in listed(indices)]
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if key == 'out_channels' and not type_name(part).endswith('RoIExtractor'):
                continue
            if isinstance(value, (list, tuple)):
                if chosen and len(chosen) == len(value):
                    part[key] = _like(value, [successors[i] for i in chosen])
                elif list(value) == old:
                    part[key] = _like(value, new)
                elif list(value) == old[::-1]:
                    part[key] = _like(value, new[::-1])
            elif isinstance(value, int):
                if len(chosen) == 1:
                    part[key] = successors[chosen[0]]
                elif part is node or len(old) == 1:
                    part[key] = by_value.get(value, value)
        if chosen:
            positions = [kept.index(i) for i in chosen]
            part.in_index = positions[0] if isinstance(indices, int) else _like(indices, positions)
    dropped = 0
    while dropped < len(old) and dropped not in kept:
        dropped += 1
    for key in ('start_level', 'end_level'):
        if node.get(key, -1) > 0:
            node[key] = max(0, node[key] - dropped)


def _settings(node: Any, path: tuple = ()) -> Iterator[tuple[str, int, tuple]]:
    """Yield each integer in a part of a config: the name of its setting, its value, and its path,
    which ends in a position for an item of a list.
    """
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        place = (*path, key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield next(key for key in reversed(place) if isinstance(key, str)), value, place
        elif isinstance(value, (dict, list, tuple)):
            yield from _settings(value, place)


def _assign(node: Any, path: tuple, value: int) -> Any:
    """Change the value at a path, and return the node; tuples are replaced."""
    key, *rest = path
    item = _assign(node[key], tuple(rest), value) if rest else value
    if isinstance(node, tuple):
        return (*node[:key], item, *node[key + 1 :])
    node[key] = item
    return node


def set_channels(node: ConfigDict, old: int, new: int) -> bool:
    """Change the first setting with the value ``old`` that is a number of channels: of an input, if
    there is one. Return whether there was any.
    """
    ranks = ('in_channels', 'channels', 'dims', 'dim')
    found = [
        (next(i for i, rank in enumerate(ranks) if name.endswith(rank)), name != 'in_channels', n)
        for n, (name, value, _) in enumerate(_settings(node))
        if value == old and name.endswith(ranks)
    ]
    if found:
        _assign(node, list(_settings(node))[min(found)[-1]][-1], new)
    return bool(found)


def set_each(node: ConfigDict, channels: dict[int, int]) -> list[bool]:
    """Call :func:`set_channels` for every pair of an old and a new number of channels."""
    return [set_channels(node, old, new) for old, new in channels.items()]


def map_channels(node: ConfigDict, original: ConfigDict, channels: dict[int, int]) -> None:
    """Change every setting that is a number of channels of an old map, and was so before."""
    current = {path: value for _, value, path in _settings(node)}
    for name, value, path in _settings(original):
        if name.endswith('channels') and value in channels and current.get(path) == value:
            _assign(node, path, channels[value])
