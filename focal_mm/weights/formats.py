"""Readers of checkpoint files of every origin, which give a state dict with the official names.

Reading never runs code that a file contains.
"""

import os
import re
from collections import OrderedDict
from pathlib import Path
from shlex import quote
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cache import whole_file
from . import unpickling
from .detectors import ORIGINS, identify_detector
from .loading import CheckpointError, plain_name, remember
from .paddle import is_paddle, read_pdparams, to_torch
from .unpickling import RefusedError

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


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins like safetensors: the length of a header, then JSON."""
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000


def _is_torch(head: bytes) -> bool:
    """Return whether a file begins like one of ``torch.save``: a zip archive or a number."""
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little')
    return head.startswith(b'PK\x03\x04') or magic in head


def trust(*files: str | Path) -> None:
    """Let the files run the code that they contain when they are loaded, as ``torch.load`` does
    with ``weights_only=False``.

    The environment variable ``FOCAL_MM_TRUST`` has the files, separated as in ``PATH``; this
    process and those that it starts read it.
    """
    paths = [str(Path(file).expanduser().resolve()) for file in files]
    os.environ['FOCAL_MM_TRUST'] = os.pathsep.join(dict.fromkeys([*_trusted_files(), *paths]))


def _trusted_files() -> list[str]:
    return [file for file in os.environ.get('FOCAL_MM_TRUST', '').split(os.pathsep) if file]


def _is_trusted(path: Path) -> bool:
    return any(path.resolve() == Path(file).expanduser().resolve() for file in _trusted_files())


def _read(path: str | Path, map_location: Any = 'cpu', omit: bool = False) -> Any:
    """Read a file of any kind, which its first bytes tell and its name does not.

    Args:
        path (str or Path): The file.
        map_location: As in ``torch.load``.
        omit (bool): Whether values of unsafe classes become empty. False: they are refused.
    """
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
        with path.open('rb') as file:
            if _is_trusted(path):
                return torch.load(file, map_location=map_location, weights_only=False)
            if is_zipfile(file) and any(
                name.endswith('/constants.pkl') for name in ZipFile(file).namelist()
            ):  # torch.load would run it
                raise RefusedError('a TorchScript program')
            file.seek(0)
            return unpickling.load(file, map_location, omit)
    except RefusedError as error:
        shell = quote(str(path))
        raise CheckpointError(
            f'{path}: refused, since it stores {error.name}, which could run code when loaded; '
            f'if you trust this file, set FOCAL_MM_TRUST={shell} (--trust {shell}); else keep its '
            f'tensors alone: focal-mm weights convert {shell} NEW.pth'
        ) from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f'{path}: cut off or not a checkpoint ({reason}); get the file again'
        ) from error


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
    content = _read(path, map_location)
    if not isinstance(content, dict):
        return content
    if 'meta' not in content and not _has_arrays(content):
        raise CheckpointError(f'{path}: holds no weights, only {next(iter(content), "nothing")}')
    for value in content.values():  # an average of the weights has a place of its own
        if isinstance(value, dict):
            remember(path, value)
    place = _place(content)
    weights = content if place is None else content[place]
    remember(path, weights)
    if not _is_weights(weights) or recognise(weights) is None:
        return content
    official = OrderedDict(to_official(weights))
    if hasattr(weights, '_metadata'):  # versions of modules, by which PyTorch loads old files
        official._metadata = weights._metadata  # type: ignore[attr-defined]
    remember(path, official)
    return official if place is None else {**content, 'state_dict': official}


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
    """Return the key under which a checkpoint stores its weights; None if it is the weights.

    Files of other trainers name it as they like, and may have an average beside the weights.
    """
    places = [key for key in ('state_dict', 'model') if _is_weights(content.get(key))]
    places += [
        key
        for key, value in content.items()
        if key not in places and _is_weights(value) and recognise(value)
    ]
    if len(places) > 1 and places[0] not in ('state_dict', 'model'):
        print_log(f'weights of {places[0]!r}; not taken: {", ".join(places[1:])}', logger='current')
    return places[0] if places else None


def convert(source: str | Path, target: str | Path) -> tuple[str | None, int]:
    """Write the weights of a checkpoint to a plain file: tensors by their official names and
    nothing else, which every reader loads without running code.

    Args:
        source (str or Path): A file that :func:`read_checkpoint` reads, or refuses since it could
            run code: it runs none here.
        target (str or Path): The new file: ``.pth``, with the tensors under ``'state_dict'``, or
            ``.safetensors``. It appears once it is complete.

    Returns:
        tuple[str or None, int]: Origin, as :func:`recognise` gives it, and number of tensors.

    Raises:
        FileNotFoundError: If there is no source.
        FileExistsError: If the target exists.
        OSError: If the target can't be written.
        ValueError: If the target has another suffix.
        CheckpointError: If the source can't be read, or has no weights.
    """
    target = Path(target).expanduser()
    if target.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{target}: the new file is to end in .pth or .safetensors')
    if target.exists():
        raise FileExistsError(
            f'{target} exists and is not overwritten; delete it, or name another file'
        )
    content = _read(source, omit=True)
    weights = content.get(_place(content), content) if isinstance(content, dict) else {}
    if not _is_weights(weights):
        raise CheckpointError(
            f'{source}: no state dict, tensors by name; it has {next(iter(weights), "nothing")}'
        )
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
