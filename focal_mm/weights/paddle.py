"""Reader of PaddlePaddle's ``.pdparams`` files, without Paddle and without running pickled code.

A ``.pdparams`` file is a pickle of a dictionary of NumPy arrays. A pickle may name any function
to be called. The reader therefore replaces the few names that an array needs by classes that only
keep data, and refuses every other name.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .loading import CheckpointError

# Paddle stores bfloat16 as uint16, which can't be told from integers: uint16 is refused.
_DTYPES = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'b1')


class _RefusedError(Exception):
    """A name in the file that no array needs."""


class _Dtype:
    """Replacement for ``numpy.dtype``."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in _DTYPES:
            raise ValueError(f'an array of dtype {code!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replacement for ``numpy.ndarray`` and for the function by which a pickle creates it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        array = np.frombuffer(data, dtype.dtype)
        self.array = array.reshape(shape, order='F') if fortran else array.reshape(shape)

    def tensor(self) -> Tensor:
        # Copied: the bytes of a pickle are read-only, and may have the other byte order.
        return torch.from_numpy(self.array.astype(self.array.dtype.newbyteorder('='), order='C'))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        # numpy.core was renamed in NumPy 2; the file has the name of the NumPy that wrote it.
        match module.replace('numpy._core', 'numpy.core'), name:
            case ('numpy.core.multiarray', '_reconstruct') | ('numpy', 'ndarray'):
                return _Array
            case 'numpy', 'dtype':
                return _Dtype
            case '_codecs', 'encode':  # how protocol 2 writes bytes
                return lambda text, encoding: text.encode('latin1')
            case 'collections', 'OrderedDict':
                return OrderedDict
        raise _RefusedError(f'{module}.{name}')


def read_pdparams(path: str | Path) -> dict[str, Tensor]:
    """Read a file of ``paddle.save(layer.state_dict(), path)``, in pickle protocols 2 to 4.

    Args:
        path (str or Path): The file.

    Returns:
        dict: Tensors by Paddle's names, in Paddle's layout; see :func:`to_torch`.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is cut off, no dictionary of arrays, or would have to run
            code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    try:
        with path.open('rb') as file:
            content = _Unpickler(file).load()
        # Names that end in @@ are Paddle's own bookkeeping.
        arrays = {key: value for key, value in content.items() if not key.endswith('@@')}
        tensors = {key: value.tensor() for key, value in arrays.items()}
    except _RefusedError as error:
        raise CheckpointError(
            f'{path}: refused, since it stores {error}, which could run code when loaded; if you '
            'trust its author, save its state dict alone (arrays by name) to a new file'
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f'{path}: cut off or not a checkpoint ({type(error).__name__}: '
            f'{" ".join(str(error).split())}); get the file again'
        ) from error
    if not tensors:
        raise CheckpointError(f'{path}: holds no parameters; get the file again')
    return tensors


def is_paddle(state_dict: dict[str, Tensor]) -> bool:
    """Return whether a state dict has Paddle's names and layout.

    Its BatchNorm has ``_mean`` and ``_variance``. FocalNet has no BatchNorm; it maps C channels to
    more than 2 C by a linear layer, whose weight Paddle stores as (in, out).
    """
    return any(
        (key.endswith('._mean') and f'{key[:-4]}variance' in state_dict)
        or (
            key.endswith('.modulation.f.weight')
            and value.ndim == 2
            and value.shape[0] < value.shape[1]
        )
        for key, value in state_dict.items()
    )


def to_torch(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and transpose a state dict of Paddle; any other is returned unchanged.

    Weights of linear layers, square ones too, become (out, in), ``_mean`` and ``_variance`` of
    BatchNorm ``running_mean`` and ``running_var``, with a ``num_batches_tracked`` of 0.

    Args:
        state_dict (dict): As :func:`read_pdparams` gives it.

    Returns:
        dict: Tensors with the names and shapes of PyTorch.
    """
    if not is_paddle(state_dict):
        return state_dict
    converted = OrderedDict()
    for key, value in state_dict.items():
        if key.endswith('.weight') and value.ndim == 2:
            value = value.T.contiguous()
        module, _, name = key.rpartition('.')
        if name == '_mean':
            key = f'{module}.running_mean'
        elif name == '_variance':
            key = f'{module}.running_var'
            converted[f'{module}.num_batches_tracked'] = torch.tensor(0)
        converted[key] = value
    return converted
