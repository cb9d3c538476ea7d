"""A checkpoint file, whoever wrote it, as a state dict with the official names.

Reading never runs code that a file brings along.
"""
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .paddle import read_pdparams, to_torch
from .resize import CheckpointError

# Renaming rules: pattern, replacement. Whose they are shows in two names that only they have.
_TIMM = (
    (r'^stem\.', 'patch_embed.'),
    # timm steps down at the start of a stage, the official code at the end of the one before.
    (r'^layers\.(\d+)\.downsample\.', lambda m: f'layers.{int(m[1]) - 1}.downsample.'),
    (r'\.ls([12])\.gamma$', r'.gamma_\1'),
    (r'\.norm([12])_post\.', r'.norm\1.'),
    (r'\.modulation\.norm\.', '.modulation.ln.'),
    (r'^head\.fc\.', 'head.'),
)
_TRANSFORMERS = (
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
)
_FORMATS = {
    'timm FocalNet': (('stem.proj.weight', 'layers.0.blocks.0.modulation.f.weight'), _TIMM),
    'Hugging Face FocalNet': (('embeddings.patch_embeddings.projection.weight',
                               'encoder.stages.0.layers.0.modulation.projection_in.weight'),
                              _TRANSFORMERS),
}


def recognise(state_dict: dict[str, Tensor]) -> str | None:
    """Whose names a state dict has: ``'timm FocalNet'``, ``'Hugging Face FocalNet'``, or None
    where nothing has to be renamed."""
    names = {re.sub(r'^focalnet\.', '', key) for key in state_dict}
    return next((name for name, (marks, _) in _FORMATS.items() if names.issuperset(marks)), None)


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a state dict of timm or Hugging Face to the official names; others pass as they are.

    timm writes linear layers as 1x1 convolutions; all but ``modulation.h``, which is one in the
    official code too, become (out, in) again.
    """
    source = recognise(state_dict)
    if source is None:
        return state_dict
    renamed = OrderedDict()
    for key, value in state_dict.items():
        if key.endswith('embeddings.mask_token'):  # of masked pre-training, no part of the net
            continue
        for pattern, replacement in _FORMATS[source][1]:
            key = re.sub(pattern, replacement, key)
        if value.ndim == 4 and re.search(r'\.(modulation\.(f|proj)|mlp\.fc[12])\.weight$', key):
            value = value.flatten(1)
        renamed[key] = value
    return renamed


def _statistic(owner: type, name: str) -> Callable:
    """Stands in for ``getattr``, by which mmengine's HistoryBuffer names its own methods."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)


_statistic.__module__, _statistic.__qualname__ = 'builtins', 'getattr'


def _trusted() -> list:
    """What mmengine and the authors' training scripts store beside tensors: plain data."""
    multiarray = getattr(np, '_core', np.core).multiarray
    dtypes = {type(np.dtype(kind)) for kind in 'fdilqILQ?'}
    return [HistoryBuffer, _statistic, Namespace, slice, np.ndarray, np.dtype,
            multiarray._reconstruct, multiarray.scalar, *dtypes]


def read_checkpoint(path: str | Path, map_location: str | torch.device = 'cpu') -> dict:
    """Reads ``.safetensors``, ``.pdparams`` or what ``torch.save`` wrote, without running code.

    Args:
        path (str or Path): The file.
        map_location (str or torch.device): Where the tensors go. Default: ``'cpu'``.

    Returns:
        dict: What the file holds, with the official names. Weights that the authors keep under
        ``'model'`` stand under ``'state_dict'`` too.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is cut off, no checkpoint, or would have to run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    if path.suffix == '.pdparams':
        return _named(to_torch(read_pdparams(path)), path)
    try:
        if path.suffix == '.safetensors':
            content = load_file(path, device=str(map_location or 'cpu'))
        else:
            with torch.serialization.safe_globals(_trusted()):
                content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r'GLOBAL ([\w.]+)', str(error))
        if refused is None:
            raise CheckpointError(f'{path}: not a checkpoint, or a damaged one; '
                                  'get the file again') from error
        raise CheckpointError(
            f'{path}: refused, since it stores {refused[1]}, which could run code when loaded; if '
            'you trust its author, save its state dict alone (tensors by name) to a new file'
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f'{path}: cut off or not a checkpoint ({reason}); '
                              'get the file again') from error
    return _named(content, path)


def _is_weights(candidate: object) -> bool:
    return (isinstance(candidate, dict) and len(candidate) > 0
            and all(isinstance(value, Tensor) for value in candidate.values()))


def _named(content: object, path: Path) -> object:
    """``content`` with official names, where mmengine looks for them, marked with their file."""
    if not isinstance(content, dict):
        return content
    place = next((k for k in ('state_dict', 'model') if _is_weights(content.get(k))), None)
    weights = content if place is None else content[place]
    metadata = OrderedDict(getattr(weights, '_metadata', {}))
    for prefix in ('', 'backbone'):  # a backbone alone or in a detector then knows its file
        metadata[prefix] = dict(metadata.get(prefix, {}), file=str(path))
    weights = OrderedDict(to_official(weights) if _is_weights(weights) else weights)
    weights._metadata = metadata
    return weights if place is None else {**content, 'state_dict': weights}
