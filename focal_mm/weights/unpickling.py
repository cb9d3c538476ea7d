"""Reader of the pickles in checkpoint files that runs no code.

A pickle names the classes and functions that are called while it is read. :func:`load` finds only
the names of :data:`SAFE`: what mmengine's loops, schedulers, hooks and metainfo can store beside
tensors, none of which acts on anything but its own data.
"""

import pickle
from collections.abc import Callable
from types import FunctionType
from typing import IO, Any, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

# Names by module. Names of dtypes in torch and of scalar types in numpy are found as well.
SAFE = {
    'builtins': (
        'bool bytearray bytes complex dict float frozenset int list object range set slice str '
        'tuple Ellipsis NotImplemented'
    ),
    'collections': 'Counter OrderedDict defaultdict deque',
    'copyreg': '_reconstructor',
    'datetime': 'date datetime time timedelta timezone',
    'decimal': 'Decimal',
    'fractions': 'Fraction',
    'uuid': 'UUID SafeUUID',
    'argparse': 'Namespace',
    'types': 'SimpleNamespace',
    'pathlib': 'Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath',
    'numpy': 'ndarray',
    'numpy.core.multiarray': '_reconstruct scalar',
    'numpy.core.numeric': '_frombuffer',
    'torch': 'Size Tensor device per_channel_affine per_tensor_affine',
    'torch.nn.parameter': 'Parameter',
    'torch.serialization': '_get_layout',
    'torch._tensor': '_rebuild_from_type_v2',
    'torch._utils': (
        '_rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy '
        '_rebuild_meta_tensor_no_storage _rebuild_nested_tensor _rebuild_parameter '
        '_rebuild_parameter_with_state _rebuild_qtensor _rebuild_sparse_tensor _rebuild_tensor '
        '_rebuild_tensor_v2 _rebuild_tensor_v3'
    ),
    'addict.addict': 'Dict',
    'mmengine.config.config': 'ConfigDict',
    'mmengine.logging.history_buffer': 'HistoryBuffer',
    'mmengine.logging.message_hub': 'MessageHub',
    'mmengine.optim.scheduler.param_scheduler': 'OneCycleParamScheduler',
}
# Modules that had another name in Python 2, whose names protocol 2 keeps, in numpy 2 and in
# Python 3.13.
_MOVED = {
    '__builtin__': 'builtins',
    'copy_reg': 'copyreg',
    'numpy._core.multiarray': 'numpy.core.multiarray',
    'numpy._core.numeric': 'numpy.core.numeric',
    'pathlib._local': 'pathlib',
}
_PYTHON_2 = {'xrange': 'range', 'unicode': 'str', 'long': 'int'}
_NUMPY_CORE = np.zeros(0).__reduce__()[0].__module__.rpartition('.')[0]
# Functions that pickles reach through their class: statistics of a log, and the shape of a cycle.
_METHODS = {
    HistoryBuffer: ('current', 'max', 'mean', 'min'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


class RefusedError(pickle.UnpicklingError):
    """Error: a pickle names something that could run code.

    Attributes:
        name (str): The name, with its module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Omitted:
    """Value of a class that is not safe: made without the class, and empty."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Take an item of a list, and keep nothing."""

    extend = append

    def __setitem__(self, key: object, value: object) -> None:
        pass


def _method(owner: type, name: str) -> Callable:
    """Replace ``getattr``, by which pickles name a method."""
    if name not in _METHODS.get(owner, ()):
        raise RefusedError('builtins.getattr')
    return getattr(owner, name)


def _dtype(code: str, *options: Any) -> np.dtype:
    """Replace ``numpy.dtype``: no records, whose fields could overlap an object."""
    dtype = np.dtype(code, *options)
    if dtype.kind == 'V':
        raise RefusedError(f'numpy.dtype({code!r})')
    return dtype


def _encode(text: str, encoding: str) -> bytes:
    """Replace ``_codecs.encode``, by which protocol 2 writes bytes."""
    return text.encode('latin1')


_REPLACED = {
    ('builtins', 'getattr'): _method,
    ('numpy', 'dtype'): _dtype,
    ('_codecs', 'encode'): _encode,
}


# In Python, not in C: the way in which it sets states is overridden.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Unpickler that finds safe names only."""

    dispatch: ClassVar = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a safe class or function.

        Raises:
            RefusedError: If the name is not safe.
        """
        if module == '__builtin__':
            name = _PYTHON_2.get(name, name)
        module = _MOVED.get(module, module)
        if (module, name) in _REPLACED:
            return _REPLACED[module, name]
        if name in SAFE.get(module, '').split():
            return super().find_class(module.replace('numpy.core', _NUMPY_CORE), name)
        owner, _, method = name.rpartition('.')
        for cls, methods in _METHODS.items():
            if (module, owner) == (cls.__module__, cls.__qualname__) and method in methods:
                return getattr(cls, method)
        if module in ('numpy', 'torch'):
            value = getattr(np if module == 'numpy' else torch, name, None)
            if isinstance(value, torch.dtype) or (
                isinstance(value, type) and issubclass(value, np.generic)
            ):
                return value
        raise RefusedError(f'{module}.{name}')

    def load_build(self) -> None:
        """Set the state of a value, unless it is a class, a function or a strange dtype."""
        state, value = self.stack[-1], self.stack[-2]
        if isinstance(value, (type, FunctionType)):
            raise RefusedError(f'the state of {value.__module__}.{value.__qualname__}')
        # Fields or flags that differ from the dtype's own would make numpy trust raw bytes.
        if isinstance(value, np.dtype) and (*state[2:5], state[7]) != (None,) * 3 + (value.flags,):
            raise RefusedError(f'the state of numpy.dtype({value.str!r})')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _is_omitted(value: object) -> bool:
    return isinstance(value, Omitted) or (isinstance(value, type) and issubclass(value, Omitted))


class _OmittingUnpickler(_Unpickler):
    """Unpickler that makes empty values of what is not safe."""

    dispatch: ClassVar = dict(_Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a safe class or function, or a class of empty values."""
        try:
            return super().find_class(module, name)
        except RefusedError:
            return type(name, (Omitted,), {})

    def load_reduce(self) -> None:
        """Call a function; the result is an empty value if an argument is one, or not safe."""
        if any(map(_is_omitted, self.stack[-1])):
            self.stack[-2] = Omitted
        try:
            super().load_reduce()
        except RefusedError:
            self.stack[-1] = Omitted()

    def load_build(self) -> None:
        """Set the state of a value, unless one of them is not safe."""
        state, value = self.stack[-1], self.stack[-2]
        parts = state if isinstance(state, tuple) else ()
        if any(map(_is_omitted, (value, *parts))):
            self.stack.pop()
            return
        try:
            super().load_build()
        except RefusedError:
            self.stack.pop()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


class _Pickle:
    """The part of the module ``pickle`` that :func:`torch.load` needs."""

    def __init__(self, unpickler: type[_Unpickler]) -> None:
        self.Unpickler = unpickler
        self.__name__ = pickle.__name__

    def load(self, file: IO[bytes], **options: Any) -> Any:
        return self.Unpickler(file, **options).load()


def load(file: IO[bytes], map_location: Any = None, omit: bool = False) -> Any:
    """Read a file of :func:`torch.save` without running code.

    Args:
        file (IO[bytes]): The file, open for reading.
        map_location: As in :func:`torch.load`. Default: the devices that the tensors were on.
        omit (bool): Whether values of unsafe classes become empty :class:`Omitted`. Default:
            False, they are refused.

    Raises:
        RefusedError: If the file names something that is not safe.
        pickle.UnpicklingError: If it is no such file; a damaged one can raise anything.
    """
    unpickler = _OmittingUnpickler if omit else _Unpickler
    return torch.load(
        file,
        map_location=map_location,
        weights_only=False,
        mmap=False,
        pickle_module=_Pickle(unpickler),
    )
