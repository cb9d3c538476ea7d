"""Origins of state dicts: whose names they have, and the official ones in place of them."""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..cache import whole_file
from .detectors import ORIGINS, identify_detector
from .files import read_file, to_tensor, walk
from .loading import CheckpointError, plain_name, remember
from .paddle import is_paddle, to_torch

# Keys that identify the origin of a file. In a detector they start with 'backbone.'.
_MARKS = {
    'official FocalNet': ('patch_embed.proj.weight', 'layers.0.blocks.0.modulation.f.weight'),
    'official Focal Transformer': (
        'layers.0.blocks.0.attn.relative_position_bias_table_to_windows.0',
    ),
    'official Focal Transformer v2': ('layers.0.blocks.0.attn.coord2rpb_all.0.0.weight',),
    'timm FocalNet': ('stem.proj.weight', 'layers.0.blocks.0.modulation.f.weight'),
    'Hugging Face FocalNet': (
        'embeddings.patch_embeddings.projection.weight',
        'encoder.stages.0.layers.0.modulation.projection_in.weight',
    ),
    'Paddle MixFormer': ('layers.0.blocks.0.attn.dwconv3x3.1._mean',),
    'PyTorch MixFormer': ('layers.0.blocks.0.attn.dwconv3x3.1.running_mean',),
}
# How often an average of weights was updated, in mmengine and in torch.
_COUNTS = ('steps', 'n_averaged')
_LINEAR = re.compile(r'\.(modulation\.(f|proj)|mlp\.fc[12])\.weight$')
# Renaming rules: pattern, replacement. The names of whole detectors and segmentors, heads and
# necks included, are the same from mmdet 2 to 3 and from mmseg 0 to 1.
_RENAMES = {
    'timm FocalNet': (
        (r'^stem\.', 'patch_embed.'),
        # timm steps down at the start of a stage, the official code at the end of the one before.
        (r'^layers\.(\d+)\.downsample\.', lambda m: f'layers.{int(m[1]) - 1}.downsample.'),
        (r'\.ls([12])\.gamma$', r'.gamma_\1'),
        (r'\.norm([12])_post\.', r'.norm\1.'),
        (r'\.modulation\.norm\.', '.modulation.ln.'),
        (r'^head\.fc\.', 'head.'),
    ),
    'Hugging Face FocalNet': (
        (r'^focalnet\.', ''),
        (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
        (r'^embeddings\.norm\.', 'patch_embed.norm.'),
        (r'^embeddings\.mask_token$', 'mask_token'),
        (r'^encoder\.stages\.(\d+)\.layers\.', r'layers.\1.blocks.'),
        (r'^encoder\.stages\.(\d+)\.downsample\.projection\.', r'layers.\1.downsample.proj.'),
        (r'^encoder\.stages\.(\d+)\.', r'layers.\1.'),
        (r'\.modulation\.projection_in\.', '.modulation.f.'),
        (r'\.modulation\.projection_context\.', '.modulation.h.'),
        (r'\.modulation\.projection_out\.', '.modulation.proj.'),
        (r'\.modulation\.layernorm\.', '.modulation.ln.'),
        (r'^layernorm\.', 'norm.'),
        (r'^classifier\.', 'head.'),
    ),
}


def _name(key: str) -> str:
    """Return a name without wrappers, and with the dots that timm's ``features_only`` replaces."""
    return re.sub(r'(?<![^.])layers_(\d+)\.', r'layers.\1.', plain_name(key))


def _identify(names: set[str]) -> tuple[str, str] | None:
    """Return the origin of a network by its names, and the prefix that it has among them."""
    for origin, marks in _MARKS.items():
        ends = (name.removesuffix(marks[-1]) for name in names if name.endswith(marks[-1]))
        for prefix in sorted(end for end in ends if end == '' or end.endswith('.')):
            if names.issuperset(prefix + mark for mark in marks):
                return origin, prefix
    return None


def recognise(state_dict: dict[str, Tensor]) -> str | None:
    """Identify the origin of a state dict by its names.

    Returns:
        str or None: ``'official FocalNet'``, ``'official Focal Transformer'``, ``'official Focal
        Transformer v2'``, ``'timm FocalNet'``, ``'Hugging Face FocalNet'``, ``'Paddle FocalNet'``,
        ``'Paddle MixFormer'`` or ``'PyTorch MixFormer'``; followed by ``' in an mmdet detector'``,
        ``' in an mmseg segmentor'`` or ``' in a larger model'`` if it is a part of one. A key of
        :data:`~focal_mm.weights.detectors.ORIGINS` for a detector with other names than mmdet's.
        None for any other names.
    """
    names = set(map(_name, state_dict))
    detector = identify_detector(names)
    if detector:
        return detector
    found = _identify(names)
    if found is None:
        return None
    origin, prefix = found
    if origin == 'official FocalNet' and is_paddle(state_dict):  # the names are the same
        origin = 'Paddle FocalNet'
    if prefix in ('', 'focalnet.'):
        return origin
    parts = {name.split('.')[0] for name in names}
    if prefix == 'backbone.' and 'decode_head' in parts:
        return f'{origin} in an mmseg segmentor'
    if prefix == 'backbone.' and parts & {'rpn_head', 'roi_head', 'bbox_head'}:
        return f'{origin} in an mmdet detector'
    return f'{origin} in a larger model'


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict to the official names, in PyTorch's layout and without what data-parallel
    and compiled models put into names; names that are none of our families' stay.

    timm writes linear layers as 1x1 convolutions; all but ``modulation.h``, which is one in the
    official code too, become (out, in) again. Detectors of other authors get mmdet's names.

    Raises:
        CheckpointError: If it is a detector that mmdet does not have.
    """
    plain = {_name(key): value for key, value in state_dict.items()}
    detector = identify_detector(set(plain))
    if detector:
        return ORIGINS[detector].convert(plain)
    found = _identify(set(plain))
    if found is None:
        return to_torch(state_dict)
    origin, prefix = found
    rules = _RENAMES.get(origin, ())
    if prefix == 'focalnet.':  # Hugging Face's classifier is beside it, not within
        prefix = ''
    averaged = any(key.startswith('module.') for key in state_dict)
    renamed = {}
    for key, value in to_torch(state_dict).items():
        if averaged and key in _COUNTS:
            continue
        key = _name(key)
        if key.startswith(prefix):
            name = key[len(prefix) :]
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            if rules and value.ndim == 4 and _LINEAR.search(name):
                value = value.flatten(1)
            key = prefix + name
        renamed[key] = value
    return renamed


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint of ``torch.save``, safetensors or Paddle without running code.

    What a run of mmengine writes is returned as it was written. Only weights of our families are
    renamed, and those that the authors store in another place are under ``'state_dict'``, too. The
    tensors remember the file (:func:`~focal_mm.weights.loading.remember`), so that a network
    that they are loaded into can refuse a part of it and name it.

    Args:
        path (str or Path): The file, under any name.
        map_location: Device of the tensors, or anything else that ``torch.load`` takes; those of
            Paddle stay on the CPU. Default: ``'cpu'``.

    Returns:
        Content of the file, in most files a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is cut off, is no checkpoint, has no weights, or would have
            to run code.
    """
    content = read_file(path, map_location)
    if not isinstance(content, dict):
        return content
    if 'meta' not in content and not any(map(_is_array, walk(content))):
        raise CheckpointError(
            f'{path}: holds no weights, only {next(iter(content), "nothing")}; get the file again'
        )
    for value in content.values():  # an average of the weights has a place of its own
        if isinstance(value, dict):
            remember(path, value)
    place, weights = _find_weights(content)
    remember(path, weights)
    if place is None or recognise(weights) is None:
        return content
    official = OrderedDict(to_official(weights))
    if hasattr(weights, '_metadata'):  # versions of modules, by which PyTorch loads old files
        official._metadata = weights._metadata  # type: ignore[attr-defined]
    remember(path, official)
    return official if weights is content else {**content, 'state_dict': official}


def _is_numbers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in 'fiub'


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or _is_numbers(value)


def _is_weights(candidate: object) -> bool:
    return (
        isinstance(candidate, dict)
        and len(candidate) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items())
    )


def _tensors(candidate: dict) -> dict[str, Tensor]:
    """Return the tensors, and the arrays as tensors, in a dictionary that may hold more."""
    if _is_weights(candidate):
        return candidate
    return {
        key: value if isinstance(value, Tensor) else to_tensor(value)
        for key, value in candidate.items()
        if isinstance(key, str) and _is_array(value)
    }


def _find_weights(content: dict) -> tuple[str | None, dict[str, Tensor]]:
    """Find the weights in a checkpoint.

    Files of other trainers name their place as they like, may nest it, may have other values or
    arrays in it, and may have an average beside the weights.

    Returns:
        tuple[str or None, dict]: The place, as keys with dots between them, and the weights. The
        place is ``''`` if the content is the weights, and None if none were found.
    """
    places = {key: content[key] for key in ('state_dict', 'model') if _is_weights(content.get(key))}
    level, seen = {'': content}, {id(content)}
    for _ in range(4):  # as deep as checkpoint.model.state_dict
        known = {place: _tensors(value) for place, value in level.items()}
        known = {place: weights for place, weights in known.items() if weights}
        places.update({place: known[place] for place in known if recognise(known[place])})
        if places:
            break
        inner = [
            (f'{place}.{key}'.lstrip('.'), value)
            for place, outer in level.items()
            for key, value in outer.items()
            if isinstance(value, dict)
        ]
        level = {}
        for place, value in inner:  # dicts that have one another twice over would never end
            if id(value) not in seen:
                seen.add(id(value))
                level[place] = value
    if not places:
        return None, content
    place, *others = places
    if others and place not in ('state_dict', 'model'):
        print_log(f'weights of {place!r}; not taken: {", ".join(others)}', logger='current')
    return place, places[place]


def convert(source: str | Path, target: str | Path, prefix: str = '') -> tuple[str | None, int]:
    """Write the weights of a checkpoint to a plain file: tensors by their official names and
    nothing else, which every reader loads without running code.

    Args:
        source (str or Path): A file that :func:`read_checkpoint` reads, or refuses since it could
            run code: it runs none here.
        target (str or Path): The new file: ``.pth``, with the tensors under ``'state_dict'``, or
            ``.safetensors``. It appears once it is complete.
        prefix (str): Takes the tensors whose names begin with it, and takes it off. Default:
            ``''``, all tensors.

    Returns:
        tuple[str or None, int]: Origin, as :func:`recognise` gives it, and number of tensors.

    Raises:
        FileNotFoundError: If there is no source.
        FileExistsError: If the target exists.
        OSError: If the target can't be written.
        ValueError: If the target has another suffix, or no tensor has the prefix.
        CheckpointError: If the source can't be read, or has no weights.
    """
    target = Path(target).expanduser()
    if target.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{target}: the new file is to end in .pth or .safetensors')
    if target.exists():
        raise FileExistsError(
            f'{target} exists and is not overwritten; delete it, or name another file'
        )
    content = read_file(source, omit=True)
    place, weights = _find_weights(content) if isinstance(content, dict) else (None, {})
    if place is None and not _is_weights(weights):
        raise CheckpointError(
            f'{source}: no state dict, tensors by name; it has {next(iter(weights), "nothing")}'
        )
    if not any(key.startswith(prefix) for key in weights):
        raise ValueError(
            f'{source}: no name begins with {prefix!r}; the first is {next(iter(weights))}'
        )
    weights = {key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)}
    origin = recognise(weights)
    # Clones: a view would bring all of its storage along, and safetensors takes none.
    weights = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in to_official(weights).items()
    }
    try:
        with whole_file(target) as part:
            if target.suffix == '.safetensors':
                save_file(weights, part, metadata={'format': 'pt'})
            else:
                torch.save({'state_dict': weights}, part)
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own
        raise OSError(f'{target}: cannot be written ({error})') from error
    return origin, len(weights)
