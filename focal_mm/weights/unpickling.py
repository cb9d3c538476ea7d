"""Reader of the pickles in checkpoint files that runs no code.

A pickle names the classes and functions that are called while it is read. :func:`load` calls only
the names of :data:`SAFE`: what mmengine's loops, schedulers, hooks and metainfo can store beside
tensors, none of which acts on anything but its own data. Dicts and lists of other classes, such as
the settings that other trainers store, are read as plain ones.
"""

import copyreg
import os
import pickle
import re
import tarfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import IO, Any, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler

# The environment variable by which torch.load refuses every unpickler but its own.
FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
# Names by module. Names of dtypes in torch and of scalar types in numpy are found as well.
SAFE = {
    'builtins': (
        'bool bytearray bytes complex dict float frozenset int list object set str tuple '
        'Ellipsis NotImplemented'
    ),
    'collections': 'Counter OrderedDict defaultdict deque',
    'datetime': 'date datetime time timedelta timezone',
    'decimal': 'Decimal',
    'uuid': 'UUID SafeUUID',
    'argparse': 'Namespace',
    'types': 'SimpleNamespace',
    'typing': 'Any',
    'pathlib': 'Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath',
    'numpy': 'ndarray',
    'numpy.core.multiarray': 'scalar',
    'numpy.core.numeric': '_frombuffer',
    'torch': 'Size Tensor device per_channel_affine per_tensor_affine',
    'torch.nn.parameter': 'Parameter',
    'torch.serialization': '_get_layout',
    'torch._tensor': '_rebuild_from_type_v2',
    'torch._utils': (
        '_rebuild_device_tensor_from_cpu_tensor _rebuild_device_tensor_from_numpy '
        '_rebuild_meta_tensor_no_storage _rebuild_parameter _rebuild_parameter_with_state '
        '_rebuild_qtensor _rebuild_sparse_tensor _rebuild_tensor _rebuild_tensor_v2 '
        '_rebuild_tensor_v3'
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
# Modules whose classes hold the settings of a run and nothing else. None is imported.
_SETTINGS = (
    'detectron2.config.',
    'fvcore.common.config.',
    'ml_collections.config_dict.',
    'mmcv.utils.config.',
    'mmengine.config.',
    'omegaconf.',
    'yacs.config.',
)
# Values that the arguments of one call may have, with those in them, each as often as it appears.
_LIMIT = 1_000_000
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
    """Value of a class that is not safe, made without the class.

    A dict or list of such a class is read as a plain one. The settings that a config object keeps
    are read as what they are, too; all else is empty.

    Attributes:
        name (str): Name of the class, with its module.
        strict (bool): Whether anything but a dict, a list or settings is refused.
        made (list[Omitted]): With ``strict``, all values of the class.
        content: The dict, the list or the settings; None if it is empty.
    """

    name = ''
    strict = False
    made: ClassVar[list['Omitted']] = []
    content: Any = None

    def __new__(cls, *args: object, **kwargs: object) -> 'Omitted':
        """Make a value.

        Raises:
            RefusedError: If it has arguments, whose effect only the class knows.
        """
        if cls.strict and (args or kwargs):
            raise RefusedError(cls.name)
        value = super().__new__(cls)
        if cls.strict:
            cls.made.append(value)
        return value

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def is_settings(self) -> bool:
        """Return whether it is of a class that holds settings."""
        return self.name.startswith(_SETTINGS)

    def append(self, item: object) -> None:
        """Take an item of a list."""
        self.extend([item])

    def extend(self, items: Iterable[object]) -> None:
        """Take items of a list."""
        self.content = [*(self.content or ()), *items]

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(self.content, dict):
            self.content = {}
        self.content[key] = value

    def __setstate__(self, state: object) -> None:
        if self.content is not None:  # the state of a dict or list is bookkeeping
            return
        if self.is_settings() and isinstance(state, dict):
            # Names such as yacs' __immutable__ are no settings.
            self.content = {k: v for k, v in state.items() if not str(k).startswith('__')}
        elif self.is_settings():
            self.content = state
        elif self.strict:
            raise RefusedError(self.name)


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


def _reconstruct(cls: type, base: type, state: Any) -> Any:
    """Replace ``copyreg._reconstructor``, by which protocols 0 and 1 write values of a class."""
    if not issubclass(cls, Omitted):
        return copyreg._reconstructor(cls, base, state)  # type: ignore[attr-defined]
    value = cls()
    if base in (dict, list):
        value.content = base(state)
    elif base is not object and cls.strict:
        raise RefusedError(cls.name)
    return value


def _range(*bounds: int) -> range:
    """Replace ``range``, of which ``list`` would make more numbers than there is memory for."""
    value = range(*bounds)
    if len(value) > _LIMIT:
        raise RefusedError(f'builtins.range of {len(value)} numbers')
    return value


def _slice(*bounds: int | None) -> slice:
    """Replace ``slice``, whose hash takes as long as that of a nested tuple."""
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise RefusedError('builtins.slice of other values than numbers')
    return slice(*bounds)


def _fraction(text: str) -> Fraction:
    """Replace ``Fraction``, which computes powers of ten of any size."""
    if not isinstance(text, str) or not re.fullmatch(r'-?\d{1,4000}(/\d{1,4000})?', text):
        raise RefusedError('fractions.Fraction of more than two numbers')
    return Fraction(text)


def _empty_array(cls: type, shape: tuple[int, ...], code: Any) -> Any:
    """Replace numpy's ``_reconstruct``, which allocates an array of any size."""
    if cls is not np.ndarray or shape != (0,):
        raise RefusedError(f'numpy.core.multiarray._reconstruct of the shape {shape}')
    return np.ndarray.__new__(np.ndarray, shape, code)


_REPLACED = {
    ('builtins', 'getattr'): _method,
    ('builtins', 'range'): _range,
    ('builtins', 'slice'): _slice,
    ('fractions', 'Fraction'): _fraction,
    ('numpy.core.multiarray', '_reconstruct'): _empty_array,
    ('numpy', 'dtype'): _dtype,
    ('_codecs', 'encode'): _encode,
    ('copyreg', '_reconstructor'): _reconstruct,
}


# In Python, not in C: the way in which it sets states is overridden.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Unpickler that calls safe names only, and refuses values of other classes."""

    dispatch: ClassVar = dict(_PythonUnpickler.dispatch)
    strict = True

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        super().__init__(file, **options)
        self.omitted: list[type[Omitted]] = []

    def find_class(self, module: str, name: str) -> Any:
        """Return a safe class or function, or a class of values that take the place of its own."""
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
        values = dict(name=f'{module}.{name}', strict=self.strict, made=[])
        self.omitted.append(type(name, (Omitted,), values))
        return self.omitted[-1]

    def load(self) -> Any:
        """Read the value.

        Raises:
            RefusedError: If a class is not safe, and not one of dicts, lists or settings.
        """
        value = super().load()
        for cls in self.omitted if self.strict else ():
            contents = [made.content for made in cls.made]
            if not contents or (None in contents and not cls.name.startswith(_SETTINGS)):
                raise RefusedError(cls.name)
        return _plain(value, {})

    def load_reduce(self) -> None:
        """Call a function whose arguments are safe, too."""
        function, args = self.stack[-2:]
        if function is not _reconstruct:
            _require_safe(args)
        _require_small(function, args)
        super().load_reduce()

    def load_newobj(self) -> None:
        """Make a value of a class."""
        _require_small(*self.stack[-2:])
        super().load_newobj()

    def load_newobj_ex(self) -> None:
        """Make a value of a class from arguments with names."""
        _require_small(self.stack[-3], (self.stack[-2], self.stack[-1]))
        super().load_newobj_ex()

    def _instantiate(self, cls: Any, args: Any) -> None:
        """Make a value of a class, as protocol 0 does."""
        _require_small(cls, tuple(args))
        super()._instantiate(cls, args)

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        _require_small(dict, (self.stack[-2],))
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set items of a dict."""
        _require_small(dict, tuple(self.stack[::2]))
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dict."""
        _require_small(dict, tuple(self.stack[::2]))
        super().load_dict()

    def load_additems(self) -> None:
        """Add items to a set."""
        _require_small(set, tuple(self.stack))
        super().load_additems()

    def load_frozenset(self) -> None:
        """Make a frozenset."""
        _require_small(frozenset, tuple(self.stack))
        super().load_frozenset()

    def load_build(self) -> None:
        """Set the state of a value, unless it is a class, a function or a strange dtype."""
        state, value = self.stack[-1], self.stack[-2]
        if isinstance(value, (type, FunctionType)):
            raise RefusedError(f'the state of {value.__module__}.{value.__qualname__}')
        # Fields or flags that differ from the dtype's own would make numpy trust raw bytes.
        if isinstance(value, np.dtype) and (*state[2:5], state[7]) != (None,) * 3 + (value.flags,):
            raise RefusedError(f'the state of numpy.dtype({value.str!r})')
        if isinstance(state, tuple) and not isinstance(value, Omitted):
            _require_safe(state)
        super().load_build()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset


class _OmittingUnpickler(_Unpickler):
    """Unpickler that makes empty values of what is not safe."""

    dispatch: ClassVar = dict(_Unpickler.dispatch)
    strict = False

    def load_reduce(self) -> None:
        """Call a function; the result is an empty value if it or an argument is not safe."""
        try:
            super().load_reduce()
        except RefusedError:
            self.stack[-1] = Omitted()

    def load_build(self) -> None:
        """Set the state of a value, unless one of them is not safe."""
        try:
            super().load_build()
        except RefusedError:
            self.stack.pop()

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def _require_safe(values: tuple) -> None:
    for value in values:
        if isinstance(value, Omitted) or (isinstance(value, type) and issubclass(value, Omitted)):
            raise RefusedError(value.name)


def _require_small(function: Any, args: Any) -> None:
    """Raise a RefusedError if a call would take more memory or time than a checkpoint needs.

    Tuples that have one another twice over have few bytes, and a hash that takes for ever.
    """
    name = getattr(function, '__name__', 'a call')
    first = args[0] if isinstance(args, tuple) and args else None
    if function in (bytes, bytearray) and isinstance(first, int):
        raise RefusedError(f'builtins.{name} of {first} zeros')
    if function is str and not all(isinstance(arg, (str, bytes)) for arg in args):
        raise RefusedError('builtins.str of a value')
    if function in (np.ndarray, torch.Tensor) and args:
        raise RefusedError(f'{function.__module__}.{name} without values')
    count, values = 0, [args]
    while values:
        value = values.pop()
        if isinstance(value, (tuple, list, set, frozenset, dict)):
            count += len(value)
            if count > _LIMIT:
                raise RefusedError(f'{name} of more than {_LIMIT:,} values')
            values += [*value, *value.values()] if isinstance(value, dict) else value


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Return a value with the plain content of each :class:`Omitted` that has one.

    Args:
        value (Any): A value; dicts, lists and namespaces in it are changed in place.
        done (dict): By ``id``, the values that have been seen and what they became.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Omitted) and (value.content is not None or value.is_settings()):
        done[id(value)] = content = {} if value.content is None else value.content
        done[id(value)] = _plain(content, done)
    elif isinstance(value, (Namespace, SimpleNamespace)):
        done[id(value)] = value
        _plain(vars(value), done)
    elif isinstance(value, (dict, list)):
        done[id(value)] = value
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            if (new := _plain(item, done)) is not item:
                value[key] = new
    elif type(value) is tuple:
        done[id(value)] = value
        parts = tuple(_plain(item, done) for item in value)
        if any(new is not old for new, old in zip(parts, value, strict=True)):
            done[id(value)] = parts
    return done.get(id(value), value)


class _Pickle:
    """The part of the module ``pickle`` that :func:`torch.load` needs."""

    def __init__(self, unpickler: type[_Unpickler]) -> None:
        self.Unpickler = unpickler
        self.__name__ = pickle.__name__

    def load(self, file: IO[bytes], **options: Any) -> Any:
        return self.Unpickler(file, **options).load()


@contextmanager
def _unforced() -> Iterator[None]:
    """Let torch.load take an unpickler of ours, also where ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` asks
    for torch's own: both run no code, but torch's can't read what mmengine writes.
    """
    forced = os.environ.pop(FORCE, None)
    try:
        yield
    finally:
        if forced is not None:
            os.environ[FORCE] = forced


def load(path: Path, map_location: Any = None, omit: bool = False, mmap: bool = False) -> Any:
    """Read a file of :func:`torch.save` without running code.

    Args:
        path (Path): The file.
        map_location: As in :func:`torch.load`. Default: the devices that the tensors were on.
        omit (bool): Whether values of unsafe classes become empty :class:`Omitted`. Default:
            False, they are refused.
        mmap (bool): Whether tensors are read from the file where they are used. Default: False.

    Raises:
        RefusedError: If the file names something that is not safe, or is a program.
        pickle.UnpicklingError: If it is no such file; a damaged one can raise anything.
    """
    with path.open('rb') as file:
        archived = file.read(4) == b'PK\x03\x04'
    # torch.load asks the same two, to run the first and to unpack the second.
    if archived and 'constants.pkl' in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise RefusedError('a TorchScript program')
    if not archived and tarfile.is_tarfile(path):
        raise pickle.UnpicklingError('a tar archive')
    misnamed = path.suffix == '.safetensors'  # torch 2.14 goes by the name, unless a file is open
    with _unforced(), path.open('rb') as file:
        return torch.load(
            file if misnamed else str(path),
            map_location=map_location,
            weights_only=False,
            mmap=mmap and not misnamed,
            pickle_module=_Pickle(_OmittingUnpickler if omit else _Unpickler),
        )


def load_pickle(file: IO[bytes], omit: bool = False) -> Any:
    """Read a file of :func:`pickle.dump`, of Python 2 as well, without running code; see
    :func:`load`.
    """
    return (_OmittingUnpickler if omit else _Unpickler)(file, encoding='latin1').load()
