"""Readers of checkpoint files of every origin, which give a state dict with the official names.

Reading never runs code that a file contains.
"""

import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cache import whole_file
from .detectors import ORIGINS, identify_detector
from .loading import CheckpointError, remember
from .paddle import is_paddle, read_pdparams, to_torch

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
    names = {re.sub(r'^(module\.)?(focalnet\.)?', '', key) for key in state_dict}
    detector = identify_detector(names)
    if detector:
        return detector
    for origin, marks in _MARKS.items():
        if origin == 'official FocalNet' and is_paddle(state_dict):  # the names are the same
            origin = 'Paddle FocalNet'
        if names.issuperset(marks):
            return origin
        if names.issuperset(f'backbone.{mark}' for mark in marks):
            parts = {name.split('.')[0] for name in names}
            model = (
                'an mmseg segmentor'
                if 'decode_head' in parts
                else 'an mmdet detector'
                if parts & {'rpn_head', 'roi_head', 'bbox_head'}
                else 'a larger model'
            )
            return f'{origin} in {model}'
    return None


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict to the official names, in PyTorch's layout and without the ``module.`` of
    a data-parallel model; an official state dict is returned unchanged.

    timm writes linear layers as 1x1 convolutions; all but ``modulation.h``, which is one in the
    official code too, become (out, in) again. Detectors of other authors get mmdet's names.

    Raises:
        CheckpointError: If it is a detector that mmdet does not have.
    """
    if state_dict and all(key.startswith('module.') for key in state_dict):
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    origin = recognise(state_dict) or ''
    if origin in ORIGINS:
        return ORIGINS[origin].convert(state_dict)
    rules = _RENAMES.get(origin)
    if rules is None:
        return to_torch(state_dict)
    renamed = {}
    for key, value in state_dict.items():
        if key.endswith('embeddings.mask_token'):  # of masked pre-training, no part of the net
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if value.ndim == 4 and re.search(r'\.(modulation\.(f|proj)|mlp\.fc[12])\.weight$', key):
            value = value.flatten(1)
        renamed[key] = value
    return renamed


def _statistic(owner: type, name: str) -> Callable:
    """Replace ``getattr``, which HistoryBuffer's pickles call to name methods of HistoryBuffer."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)


_statistic.__module__, _statistic.__qualname__ = 'builtins', 'getattr'


def _trusted() -> list:
    """Return the types that mmengine and the authors' scripts store beside tensors: plain data."""
    dtypes = {type(np.dtype(kind)) for kind in 'fdilqILQ?'}
    # The functions that rebuild arrays and scalars; numpy 2 has moved them.
    reconstruct, scalar = (value.__reduce__()[0] for value in (np.zeros(0), np.float64(0)))
    return [
        HistoryBuffer,
        _statistic,
        Namespace,
        slice,
        np.ndarray,
        np.dtype,
        reconstruct,
        scalar,
        *dtypes,
    ]


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins like safetensors: the length of a header, then JSON."""
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000


def _is_torch(head: bytes) -> bool:
    """Return whether a file begins like one of ``torch.save``: a zip archive or a number."""
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little')
    return head.startswith(b'PK\x03\x04') or magic in head


def _read(path: str | Path, map_location: str | torch.device | None = 'cpu') -> Any:
    """Read a file of any kind, which its first bytes tell and its name does not."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    with path.open('rb') as file:
        head = file.read(32)
    safetensors = _is_safetensors(head)
    if not safetensors and not _is_torch(head):  # a bare pickle like Paddle's, or no checkpoint
        return read_pdparams(path)
    try:
        if safetensors:
            return load_file(path, device=str(map_location or 'cpu'))
        # An open file: torch 2.14 judges a path by its suffix. Only a path could be memory-mapped.
        with torch.serialization.safe_globals(_trusted()), path.open('rb') as file:
            return torch.load(file, map_location=map_location, weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        refused = re.search(r'GLOBAL ([\w.]+)', str(error))
        if refused is None:
            raise CheckpointError(
                f'{path}: not a checkpoint, or a damaged one; get the file again'
            ) from error
        raise CheckpointError(
            f'{path}: refused, since it stores {refused[1]}, which could run code when loaded; if '
            'you trust its author, save its state dict alone (tensors by name) to a new file'
        ) from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f'{path}: cut off or not a checkpoint ({reason}); get the file again'
        ) from error


def read_checkpoint(path: str | Path, map_location: str | torch.device | None = 'cpu') -> dict:
    """Read a checkpoint of ``torch.save``, safetensors or Paddle without running code.

    The tensors remember the file (:func:`~focal_mm.weights.loading.remember`), so that a network
    that they are loaded into can refuse a part of it and name it.

    Args:
        path (str or Path): The file, under any name.
        map_location (str or torch.device): Device of the tensors; those of Paddle stay on the
            CPU. Default: ``'cpu'``.

    Returns:
        dict: Content of the file, with the official names. Weights that the authors store under
        ``'model'`` are under ``'state_dict'``, too.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is cut off, is no checkpoint, has no weights, or would have
            to run code.
    """
    content = _read(path, map_location)
    if not isinstance(content, dict):
        return content
    if not _has_arrays(content):
        raise CheckpointError(f'{path}: holds no weights, only {next(iter(content), "nothing")}')
    for value in content.values():  # an average of the weights has a place of its own
        if isinstance(value, dict):
            remember(path, value)
    place = _place(content)
    weights = content if place is None else content[place]
    metadata = getattr(weights, '_metadata', None)
    weights = OrderedDict(to_official(weights) if _is_weights(weights) else weights)
    if metadata is not None:
        # Versions of modules, by which PyTorch loads old files.
        weights._metadata = metadata  # type: ignore[attr-defined]
    remember(path, weights)
    return weights if place is None else {**content, 'state_dict': weights}


def _has_arrays(content: object) -> bool:
    """Return whether there is a tensor or an array anywhere in nested dictionaries and lists."""
    if isinstance(content, (dict, list, tuple)):
        return any(map(_has_arrays, content.values() if isinstance(content, dict) else content))
    return isinstance(content, (Tensor, np.ndarray))


def _is_weights(candidate: object) -> bool:
    return (
        isinstance(candidate, dict)
        and len(candidate) > 0
        and all(isinstance(value, Tensor) for value in candidate.values())
    )


def _place(content: dict) -> str | None:
    """Return the key under which a checkpoint stores its weights; None if it is the weights."""
    return next((key for key in ('state_dict', 'model') if _is_weights(content.get(key))), None)


def convert(source: str | Path, target: str | Path) -> tuple[str, int]:
    """Write the weights of a published checkpoint to a plain file: tensors by their official names
    and nothing else, which every reader loads without running code.

    Args:
        source (str or Path): A file that :func:`read_checkpoint` reads.
        target (str or Path): The new file: ``.pth``, with the tensors under ``'state_dict'``, or
            ``.safetensors``. It appears once it is complete.

    Returns:
        tuple[str, int]: Origin, as :func:`recognise` gives it, and number of tensors.

    Raises:
        FileNotFoundError: If there is no source.
        FileExistsError: If the target exists.
        OSError: If the target can't be written.
        ValueError: If the target has another suffix.
        CheckpointError: If the source can't be read, or is no checkpoint of our families.
    """
    target = Path(target).expanduser()
    if target.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{target}: the new file is to end in .pth or .safetensors')
    if target.exists():
        raise FileExistsError(
            f'{target} exists and is not overwritten; delete it, or name another file'
        )
    content = _read(source)
    weights = content.get(_place(content), content) if isinstance(content, dict) else {}
    origin = recognise(weights) if _is_weights(weights) else None
    if origin is None:
        raise CheckpointError(
            f'{source}: no published checkpoint of FocalNet, Focal Transformer or MixFormer; it '
            f'has {next(iter(weights), "nothing")}'
        )
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
