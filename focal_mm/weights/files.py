"""Files that hold weights: what kind a file is, and its content, read without running code.

The first bytes of a file tell its kind, and its name does not, except for kinds without a mark.
"""

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..messages import printable
from . import unpickling
from .loading import CheckpointError
from .unpickling import RefusedError

# Paddle stores bfloat16 as uint16, which can't be told from integers.
_NUMBERS = 'fibc'
# Bytes in memory that a file may have for each of its own, beside 64 MB. Weights hardly compress.
_RATIO, _FREE = 32, 64_000_000


class _Kind(NamedTuple):
    """A kind of file that is no checkpoint, or holds one that has to be taken out first."""

    name: str
    advice: str


_UNPACK = 'unpack it, and give the checkpoint in it'
_EXPORTED = 'give the checkpoint that it was made from'
# By the first bytes.
_MARKED = {
    b'\x1f\x8b': _Kind('compressed by gzip', 'uncompress it (gunzip), and give what comes out'),
    b'BZh': _Kind('compressed by bzip2', 'uncompress it (bunzip2), and give what comes out'),
    b'\xfd7zXZ\0': _Kind('compressed by xz', 'uncompress it (unxz), and give what comes out'),
    b'\x28\xb5\x2f\xfd': _Kind('compressed by zstd', 'uncompress it (unzstd), and give the result'),
    b'7z\xbc\xaf\x27\x1c': _Kind('a 7z archive', _UNPACK),
    b'Rar!': _Kind('a RAR archive', _UNPACK),
    b'\x89HDF\r\n\x1a\n': _Kind(
        'an HDF5 file, as Keras and MATLAB write', 'save its arrays by name with numpy.savez'
    ),
    b'\x93NUMPY': _Kind(
        'a NumPy array without a name', 'save arrays by name with numpy.savez, as a .npz file'
    ),
    b'MATLAB': _Kind('a MATLAB file', 'save its arrays by name with numpy.savez'),
    b'GGUF': _Kind('a GGUF file, quantized for inference', 'give the file that it was made from'),
    b'version https://git-lfs': _Kind(
        'a pointer of Git LFS, not the file', 'get the file (git lfs pull)'
    ),
    b'<': _Kind('a web page', 'get the file again, from the address that it links to'),
    b'{': _Kind('JSON text', 'give a file of weights; of an index, the files that it names'),
}
# By the end of the name, for kinds that may begin with anything.
_SUFFIXES = {
    '.onnx': _Kind('an ONNX graph', _EXPORTED),
    '.pb': _Kind('a TensorFlow graph', _EXPORTED),
    '.tflite': _Kind('a TensorFlow Lite graph', _EXPORTED),
    '.pdmodel': _Kind("a graph of Paddle's inference", 'give the .pdparams file'),
    '.pdiparams': _Kind("a file of Paddle's inference", 'give the .pdparams file'),
    '.msgpack': _Kind('a msgpack file of Flax', 'save its arrays by name with numpy.savez'),
    '.index': _Kind('a part of a TensorFlow checkpoint', 'save its arrays with numpy.savez'),
    '.data-00000-of-00001': _Kind(
        'a part of a TensorFlow checkpoint', 'save its arrays by name with numpy.savez'
    ),
}
_TAR = _Kind('a tar archive', _UNPACK)


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


def read_file(path: str | Path, map_location: Any = 'cpu', omit: bool = False) -> Any:
    """Read a file of PyTorch, safetensors, NumPy (``.npz``) or :mod:`pickle`, as Paddle's are.

    The arrays of the last two become tensors on the CPU.

    Args:
        path (str or Path): The file; also an address that begins with ``file://``.
        map_location: As in ``torch.load``. Default: ``'cpu'``.
        omit (bool): Whether values of unsafe classes become empty. Default: False, they are
            refused.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is another kind of file, is cut off, or would have to run code.
    """
    if str(path).startswith('file://'):
        path = url2pathname(urlparse(str(path)).path)
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f'{printable(str(path))} is a folder; give the checkpoint file')
    if not path.is_file():
        raise FileNotFoundError(f'{printable(str(path))}: no such checkpoint file')
    with path.open('rb') as file:
        head = file.read(512)
    if foreign := _foreign_kind(path, head):
        raise CheckpointError(f'{path}: this is {foreign.name}; {foreign.advice}')
    try:
        return _read(path, head, map_location, omit)
    except CheckpointError:
        raise
    except RefusedError as error:
        raise CheckpointError(_describe_refusal(path, error.name)) from error
    except Exception as error:  # a damaged file can raise anything
        # PyTorch asks to report its own message.
        reason = ' '.join(str(error).splitlines()[:1]).partition(' (Could this error')[0].strip()
        reason = reason or type(error).__name__
        raise CheckpointError(
            f'{path}: cut off or not a checkpoint ({reason}); get the file again'
        ) from error


def _is_safetensors(head: bytes) -> bool:
    """Return whether a file begins like safetensors: the length of a header, then JSON."""
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= 100_000_000


def _is_torch(head: bytes) -> bool:
    """Return whether a file begins like one of ``torch.save`` before its zip archives."""
    return torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little') in head[:32]


def _is_pickle(head: bytes) -> bool:
    """Return whether a file begins like a pickle of any protocol."""
    return re.match(rb'\x80[\2-\5]|\(?[dl]p?\d|[}\]](q|\.)|\(?c[\w.]+\n\w', head) is not None


def _foreign_kind(path: Path, head: bytes) -> _Kind | None:
    """Return the kind of a file that can't be read, or None if it is to be tried."""
    if head.startswith(b'PK') or _is_safetensors(head) or _is_torch(head) or _is_pickle(head):
        return None
    if head[257:262] == b'ustar':
        return _TAR
    for mark, kind in _MARKED.items():
        if head.removeprefix(b'\xef\xbb\xbf').lstrip().startswith(mark):
            return kind
    for suffix, kind in _SUFFIXES.items():
        if path.name.endswith(suffix):
            return kind
    return None


def _read(path: Path, head: bytes, map_location: Any, omit: bool) -> Any:
    if _is_safetensors(head):
        return load_file(path, device=str(map_location or 'cpu'))
    trusted = _is_trusted(path) and unpickling.FORCE not in os.environ
    members = _list_archive(path)
    if members and all(name.endswith('.npy') for name in members):
        return _read_arrays(path, trusted, omit)
    if members and not any(name.endswith('.pkl') for name in members):
        raise CheckpointError(f'{path}: this is a zip archive with {members[0]}; {_UNPACK}')
    if head.startswith(b'PK') or _is_torch(head):
        if trusted:
            with path.open('rb') as file:  # of a name, torch 2.14 believes the suffix
                return torch.load(file, map_location=map_location, weights_only=False)
        content = unpickling.load(path, map_location, omit)
        if str(map_location) != 'meta':
            _require_stored(path, content)
        return content
    if not head:
        raise CheckpointError(f'{path}: empty; get the file again')
    if not _is_pickle(head):
        raise CheckpointError(
            f'{path}: no kind of file that is read here: PyTorch, safetensors, NumPy (.npz) or '
            f'a pickle, as Paddle writes; it begins with {head[:12]!r}'
        )
    with path.open('rb') as file:
        if trusted:
            content = pickle.load(file, encoding='latin1')
        else:
            content = unpickling.load_pickle(file, omit)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(
            f'{path}: holds a {type(content).__name__}, and no dict of arrays by name'
        )
    # Names that end in @@ are Paddle's own bookkeeping.
    content = {key: value for key, value in content.items() if not key.endswith('@@')}
    return _to_tensors(content, str(path), {})


def _list_archive(path: Path) -> list[str]:
    """Return the names in a zip archive; none of another file.

    Raises:
        CheckpointError: If it would become far larger in memory.
    """
    if not is_zipfile(path):
        return []
    with ZipFile(path) as archive:
        members = archive.infolist()
    _require_plausible(path, sum(member.file_size for member in members))
    return [member.filename for member in members]


def _require_stored(path: Path, content: Any) -> None:
    """Raise a CheckpointError if tensors have no numbers, or far more than the file."""
    tensors = [value for value in walk(content) if isinstance(value, Tensor)]
    if any(value.is_meta for value in tensors):
        raise CheckpointError(f'{path}: has a tensor without values; get the file again')
    _require_plausible(path, sum(value.numel() * value.element_size() for value in tensors))


def _require_plausible(path: Path, size: int) -> None:
    if size > _FREE + _RATIO * path.stat().st_size:
        raise CheckpointError(
            f'{path}: would take {size / 1e9:,.1f} GB of memory, though the file has '
            f'{path.stat().st_size / 1e6:,.1f} MB; get the file again, from another place'
        )


def _read_arrays(path: Path, trusted: bool, omit: bool) -> dict[str, Any]:
    """Read a ``.npz`` file."""
    found = {}
    with np.load(path, allow_pickle=trusted) as arrays:
        for name in arrays.files:
            try:
                found[name] = arrays[name]
            except ValueError as error:
                if 'allow_pickle' not in str(error):
                    raise
                if not omit:
                    raise RefusedError(f'{name}, an array of Python objects') from error
    return _to_tensors(found, str(path), {})


def walk(value: Any) -> Iterator[Any]:
    """Yield a value and those in its dicts, lists and tuples, each of them once."""
    seen: set[int] = set()
    values = [value]
    while values:
        value = values.pop()
        yield value
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            values += value.values() if isinstance(value, dict) else value


def _to_tensors(value: Any, name: str, done: dict[int, dict]) -> Any:
    """Return a value with a tensor for each array of numbers in it.

    Args:
        value (Any): Its dicts are copied.
        name (str): Where it is, for error messages.
        done (dict): By ``id``, the copies that there are.

    Raises:
        CheckpointError: If an array has numbers that PyTorch does not have.
    """
    if isinstance(value, dict):
        if id(value) not in done:
            copy = done[id(value)] = {}
            for key, child in value.items():
                copy[key] = _to_tensors(child, f'{name}: {key}', done)
        return done[id(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind == 'u' and value.dtype.itemsize > 1:
        raise CheckpointError(
            f'{name} is an array of {value.dtype}, as Paddle stores bfloat16; save it as float32'
        )
    if isinstance(value, np.ndarray) and (value.dtype.kind in _NUMBERS or value.dtype == np.uint8):
        return to_tensor(value)
    return value


def to_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor with the numbers of an array."""
    # Copied: the bytes of a pickle are read-only, and may have the other byte order.
    return torch.from_numpy(array.astype(array.dtype.newbyteorder('='), order='C'))


def _describe_refusal(path: Path, name: str) -> str:
    shell = quote(str(path))
    if _is_trusted(path):
        way_out = f'it is trusted, but {unpickling.FORCE} forbids that: unset the variable, or'
    else:
        way_out = f'if you trust this file, set FOCAL_MM_TRUST={shell} (--trust {shell}); else'
    return (
        f'{path}: refused, since it stores {name}, which could run code when loaded; {way_out} '
        f'keep its tensors alone: focal-mm weights convert {shell} NEW.pth'
    )
