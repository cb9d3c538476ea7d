"""Loading of state dicts: the file that each tensor came from, fitting, and checking.

Every way to load a network (``init_cfg``, ``load_from``, ``resume``, mmengine's
``load_checkpoint``, PyTorch's ``load_state_dict``) calls the hooks that PyTorch runs before a
module is loaded. The first
:class:`FittedModule` that is called fits and checks the state dict for itself and for all modules
within it, before its first tensor is copied. A state dict that does not belong there therefore
leaves these modules unchanged, and each module is fitted once in a load.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..messages import printable
from .resize import fit_kernel

_WRAPPERS = re.compile(r'^((module|_orig_mod)\.)+')
_NUMBER = re.compile(r'\d+$')
# Packages whose classes the networks of focal_mm consist of; all other classes are a user's.
_PACKAGES = ('focal_mm', 'mmcv', 'mmdet', 'mmengine', 'torch')


class CheckpointError(RuntimeError):
    """Error: a checkpoint can't be read, or does not belong to the model it is loaded into.

    Args:
        message (str): One line. Names in it are those of a file that anybody may have written, so
            control characters, with which a terminal can be led, are escaped.
    """

    def __init__(self, message: str) -> None:
        text = printable(message)
        super().__init__(text if len(text) < 4000 else f'{text[:2000]} ... {text[-1000:]}')


# ---- the file that a tensor came from ----------------------------------------------------------


class Source(NamedTuple):
    """Origin of a tensor.

    Attributes:
        file (str): The checkpoint file.
        key (str): Name of the tensor in the file, after renaming.
    """

    file: str
    key: str


# The tensors themselves carry their origin: mmengine makes new dictionaries on its way from the
# reader to the model (for ``prefix``, ``revise_keys``, ...), but passes the tensors on.
_SOURCES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember(file: str | Path, state_dict: dict) -> None:
    """Record the file and the name of each tensor in a dictionary for the tensor's lifetime.

    Args:
        file (str or Path): The checkpoint file.
        state_dict (dict): Tensors by name; other values are skipped.
    """
    for key, value in state_dict.items():
        if isinstance(value, Tensor):
            _SOURCES[value] = Source(str(file), str(key))


def find_source(values: Iterable[object]) -> Source | None:
    """Return the origin of the first value that :func:`remember` knows, or None.

    Values may be dicts of tensors, as in a file that keeps its weights in a place of its own.
    """
    nested = (v.values() if isinstance(v, dict) else (v,) for v in values)
    tensors = (value for value in chain.from_iterable(nested) if isinstance(value, Tensor))
    return next((_SOURCES[tensor] for tensor in tensors if tensor in _SOURCES), None)


class Load:
    """State of one call of ``load_state_dict``, shared by its hooks.

    Attributes:
        messages (list[str]): The list of error messages that all hooks of the call share.
        file (str or None): The file that is loaded, once a hook has been given a tensor or the
            name of a tensor from it. None: the state dict was not read from a file, and may be
            partial, as everywhere in PyTorch.
        fitted (set[str]): Prefixes of the modules that have been fitted and are still to be
            loaded.
    """

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages
        self.file: str | None = None
        self.fitted: set[str] = set()

    def names(self) -> list[str]:
        """Return the names of those tensors of the file that are still in memory."""
        return [source.key for source in _SOURCES.values() if source.file == self.file]


_state = threading.local()


def current_load(state_dict: dict, unexpected_keys: list[str], error_msgs: list[str]) -> Load:
    """Return the state of the load that a pre-hook of ``load_state_dict`` belongs to.

    Args:
        state_dict (dict): As the hook receives it: whole, or only the entries of its module.
        unexpected_keys (list[str]): As the hook receives it.
        error_msgs (list[str]): As the hook receives it. All hooks of a load share one list, which
            distinguishes this load from every other, including a failed one.
    """
    load = getattr(_state, 'load', None)
    if load is None or load.messages is not error_msgs:
        load = _state.load = Load(error_msgs)
    if load.file is None:
        source = find_source(state_dict.values())
        if source is None and not state_dict:
            # The file may have no tensor for this hook's module, but some that no module expects.
            unexpected = set(unexpected_keys)
            source = next((s for s in _SOURCES.values() if s.key in unexpected), None)
        load.file = source and source.file
    return load


def plain_name(name: str) -> str:
    """Return the name of a tensor without what a data-parallel (``module.``) or a compiled model
    (``_orig_mod.``) puts before it.
    """
    return _WRAPPERS.sub('', name)


# ---- fitting -----------------------------------------------------------------------------------


class FittedModule(nn.Module):
    """Module that fits the entries of a state dict to its own shapes before they are loaded.

    Attributes:
        changes (Counter): Number of changes of each kind that :meth:`fit_state_dict` has made,
            as ``(noun, change)`` pairs: ``('kernel', 'zero-padded 3x3 -> 9x9')``. They are logged,
            one line for each kind, and cleared once everything has been fitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changes: Counter = Counter()
        self._register_load_state_dict_pre_hook(self._before_load)

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Change, in place, the entries of ``state_dict`` that belong to this module.

        By default nothing is changed.

        Args:
            state_dict (dict): A copy that may be changed; it may lack any key.
            prefix (str): Start of this module's own names, with its dot.

        Raises:
            CheckpointError: If an entry can't be made to fit. A ValueError is turned into one.
        """

    def check_state_dict(self, state_dict: dict[str, Tensor], prefix: str, load: Load) -> None:
        """Check ``state_dict`` after all of it has been fitted. By default everything passes.

        Raises:
            CheckpointError: If it does not belong here.
        """

    def fit_odd_kernel(self, state_dict: dict[str, Tensor], key: str, size: int) -> None:
        """Zero-pad or crop one odd kernel of ``state_dict``, if it is there; see
        :func:`~focal_mm.weights.resize.fit_kernel`.

        Raises:
            CheckpointError: If the kernel is even.
        """
        weight = state_dict.get(key)
        if weight is None or weight.ndim != 4 or weight.shape[-1] == size:
            return
        theirs = weight.shape[-1]
        if theirs % 2 == 0:
            raise CheckpointError(
                f'{key} is a {theirs}x{theirs} kernel; kernels of '
                f'{type(self).__name__} are odd, so this is another network'
            )
        state_dict[key] = fit_kernel(weight, size)
        what = 'zero-padded' if theirs < size else 'cropped'
        self.changes['kernel', f'{what} {theirs}x{theirs} -> {size}x{size}'] += 1

    def _before_load(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Fit and check everything within this module, unless an outer module has done so."""
        load = current_load(state_dict, unexpected_keys, error_msgs)
        if prefix in load.fitted:
            load.fitted.remove(prefix)
            return
        modules = {
            f'{name}.' if name else '': module
            for name, module in self.named_modules(
                prefix=prefix.rstrip('.'), remove_duplicate=False
            )
            if isinstance(module, FittedModule)
        }
        try:
            with torch.no_grad():
                for name, module in modules.items():
                    try:
                        module.fit_state_dict(state_dict, name)
                    except ValueError as error:
                        raise CheckpointError(
                            f'{name[:-1]}: {error}' if name else str(error)
                        ) from error
            for name, module in modules.items():
                module.check_state_dict(state_dict, name, load)
            changes = sum((module.changes for module in set(modules.values())), Counter())
        except CheckpointError as error:
            raise CheckpointError(f'{load.file or "state dict"}: {error}') from error.__cause__
        finally:
            for module in modules.values():
                module.changes.clear()
        load.fitted.update(modules.keys() - {prefix})
        for (noun, what), count in changes.items():
            print_log(f'{count} {noun}{"s" * (count > 1)} {what}', logger='current')


def initial_state(module: nn.Module, prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Return the state dict of a module as it was initialized.

    Args:
        module (nn.Module): The module. On the meta device, where it has no values, a copy of it
            is initialized by ``reset_parameters``.
        prefix (str): Start of the names.
        device (torch.device): Device of the copy.
    """
    state = module.state_dict(prefix=prefix)
    if not any(value.is_meta for value in state.values()):
        return state
    module = deepcopy(module).to_empty(device=device)
    for child in module.modules():
        getattr(child, 'reset_parameters', lambda: None)()
    return module.state_dict(prefix=prefix)


# ---- checking ----------------------------------------------------------------------------------


class FittedBackbone(FittedModule):
    """Network that checks a state dict as a whole before the first tensor is copied.

    Shapes always have to agree. A state dict that was read from a file also has to be complete: no
    key of this network is missing or left over. Only parameters that the checkpoint can't know stay
    as initialized: parameters that a user has added to the network, in a subclass, in a module of
    another class or by hand.

    Attributes:
        family_names (frozenset[str]): Names of the family's own parameters and buffers, with ``*``
            for numbers; see :meth:`record_names`.
    """

    family_names: frozenset[str]

    def record_names(self) -> None:
        """Record the names of the network as its family builds it, at the end of ``__init__``."""
        self.family_names = frozenset(map(_general, self.state_dict()))

    def check_state_dict(self, state_dict: dict[str, Tensor], prefix: str, load: Load) -> None:
        """Check shapes and, if the state dict comes from a file, names.

        Tensors of other parts of a model, such as a neck, may be left over beside the network's
        own; they are logged, and with ``strict=True`` the caller refuses them.

        Raises:
            CheckpointError: If a shape differs or, from a file, a key is missing or left over, or
                nothing is there.
        """
        own, family = self.state_dict(prefix=prefix), type(self).__name__
        given = [key for key in state_dict if key.startswith(prefix)]
        if own.keys().isdisjoint(given):
            if load.file or (
                given and not any(isinstance(state_dict[key], Tensor) for key in given)
            ):
                raise CheckpointError(self._describe_foreign(given, next(iter(own)), prefix, load))
            return
        known, new = {_general(key) for key in given}, []
        for key, value in own.items():
            if key in state_dict:
                ours, theirs = (tuple(getattr(v, 'shape', ())) for v in (value, state_dict[key]))
                if ours != theirs:
                    raise CheckpointError(
                        f'{key} is {theirs} where {family} has {ours}; build the model with the '
                        'sizes of the checkpoint, or take the checkpoint of this arch'
                    )
            elif load.file and not key.endswith('.num_batches_tracked'):  # as in mmengine
                if not self._is_new(prefix, key[len(prefix) :], known):
                    raise CheckpointError(
                        f'{key} is missing; another depth or option, or a part '
                        'of a file: build the model as the checkpoint was'
                    )
                new.append(key)
                if not value.is_meta:  # else PyTorch reports it as missing
                    state_dict[key] = value
        extra = [key for key in given if key not in own] if load.file else []
        others = [] if prefix else [key for key in extra if self._is_of_another_part(key)]
        if unknown := next((key for key in extra if key not in others), None):
            raise CheckpointError(
                f'{unknown} is not in the {family} that was built; build it as the checkpoint was'
            )
        if others:
            parts = ', '.join(sorted({key.split('.')[0] for key in others}))
            self.changes['tensor', f'of the checkpoint left over: {parts}'] += len(others)
        if new:
            names = ', '.join(dict.fromkeys(_general(key[len(prefix) :]) for key in new))
            what = f'not in {load.file}, left as initialized: {names}'
            self.changes['parameter', what] += len(new)

    def _is_of_another_part(self, name: str) -> bool:
        """Return whether a tensor belongs to a module beside this network, as a neck: its name
        begins with none of the network's own parts, whatever their numbers.
        """
        parts = {_NUMBER.sub('', key.split('.')[0]) for key in self.family_names}
        part, _, rest = name.partition('.')
        return rest != '' and _NUMBER.sub('', part) not in parts

    def _is_new(self, prefix: str, name: str, known: set[str]) -> bool:
        """Return whether a user has added a parameter.

        Args:
            prefix (str): Start of the names of this network, with its dot.
            name (str): Name of the parameter in it.
            known (set[str]): Names of the checkpoint, with ``*`` for numbers.
        """
        if _general(name) not in self.family_names:
            return True
        # A module of a user's class, built by the family, may add parameters of its own.
        parts, owner = name.split('.'), self.get_submodule(name.split('.', maxsplit=1)[0])
        for depth, part in enumerate(parts[1:], 2):
            added = _general(prefix + '.'.join(parts[:depth]))
            custom = type(owner).__module__.split('.')[0] not in _PACKAGES
            if custom and not any(f'{key}.'.startswith(f'{added}.') for key in known):
                return True
            child = getattr(owner, part, None)
            if not isinstance(child, nn.Module):
                return False
            owner = child
        return False

    def _describe_foreign(self, given: list[str], wanted: str, prefix: str, load: Load) -> str:
        """Return the error message for a state dict that has nothing for this network."""
        in_file = load.names() if load.file else []
        wrapper = next((k.removesuffix(wanted) for k in in_file if k.endswith(f'.{wanted}')), '')
        hint = describe_prefixes(in_file, wanted[len(prefix) :])
        if prefix and wrapper:
            hint += (
                f'; for the whole model: focal-mm weights convert {load.file} NEW.pth '
                f'--prefix {wrapper}'
            )
        return (
            f'not a checkpoint of {type(self).__name__}: it has '
            f'{next(iter(given or in_file), "no key")}, and nothing like {wanted}{hint}'
        )


def describe_prefixes(names: Iterable[str], wanted: str) -> str:
    """Return the end of an error message: behind which prefixes a file has a tensor.

    Args:
        names (Iterable[str]): Names of the tensors in the file.
        wanted (str): Name of the tensor in the network.

    Returns:
        str: Empty if the file does not have it.
    """
    ends = (name.removesuffix(wanted) for name in names if f'.{name}'.endswith(f'.{wanted}'))
    prefixes = sorted(set(ends))
    if not prefixes:
        return ''
    found = ' and '.join(repr(p) if p else 'no prefix' for p in prefixes)
    option = f', prefix={prefixes[0]!r}' if prefixes[0] else ''
    return (
        f'; the file has {wanted} behind {found}: give it to the backbone, as '
        f"init_cfg=dict(type='Pretrained', checkpoint=...{option})"
    )


def _general(key: str) -> str:
    """Return a name with ``*`` for the numbers of stages, blocks and layers."""
    return re.sub(r'(?<![^.])\d+(?![^.])', '*', key)
