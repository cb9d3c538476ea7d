"""Pickles of checkpoints: all that a run writes is read, and nothing is run."""

import argparse
import collections
import datetime
import decimal
import os
import pathlib
import random
import types
import uuid

import numpy as np
import pytest
import torch
from addict import Dict
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from focal_mm.weights import CheckpointError, convert, read_checkpoint, trust
from focal_mm.weights.unpickling import Omitted, load

pytestmark = pytest.mark.stock

METAINFO = {
    **{f'array of {kind}': np.zeros((2, 3), kind) for kind in '?bhilqBHILQefdFD'},
    'array of str': np.array(['person', 'bicycle']),
    'array of bytes': np.array([b'person']),
    'array of objects': np.array(['person', 1, None], object),
    'array of dates': np.array(['2020-01-01'], 'datetime64[D]'),
    'array of the other byte order': np.arange(3, dtype='>i4'),
    'array in Fortran order': np.asfortranarray(np.eye(3, 2)),
    'scalars': [np.uint8(3), np.float32(0.5), np.bool_(True), np.str_('a')],
    'dtypes': [np.dtype('u1'), np.uint8, np.float32, torch.float16],
    'nested config': ConfigDict(a=ConfigDict(b=[1, ConfigDict(c=2)])),
    'addict': Dict(a=Dict(b=1)),
    'paths': [pathlib.Path('/data'), pathlib.PurePosixPath('a/b')],
    'defaultdict': collections.defaultdict(list, a=[1]),
    'collections': [
        collections.OrderedDict(a=1),
        collections.Counter('aab'),
        collections.deque([1, 2], maxlen=3),
        {1, 2},
        frozenset({1}),
        (1, (2,)),
    ],
    'times': [
        datetime.datetime(2020, 1, 2, 3, 4),
        datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        datetime.date(2020, 1, 2),
        datetime.time(1, 2),
        datetime.timedelta(seconds=3),
    ],
    'numbers': [decimal.Decimal('0.1'), 1 + 2j, 10**30],
    'values': [b'bytes', bytearray(b'a'), range(3), slice(1, 2), ..., None],
    'namespaces': [argparse.Namespace(a=1), types.SimpleNamespace(b=2)],
    'uuid': uuid.UUID(int=5),
    'random states': [random.getstate(), torch.get_rng_state()],
    'torch': [torch.Size([1, 2]), torch.device('cpu'), nn.Parameter(torch.ones(2))],
    'sparse and quantized': [
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    ],
}


def saved(path, value, **options) -> str:
    torch.save(
        {'meta': {'dataset_meta': value}, 'state_dict': {'w': torch.ones(1)}}, path, **options
    )
    return str(path)


@pytest.mark.parametrize('protocol', [2, 5])
@pytest.mark.parametrize('name', METAINFO)
def test_metainfo_is_read_as_it_was_written(tmp_path, name, protocol):
    value = METAINFO[name]
    file = saved(tmp_path / 'x.pth', value, pickle_protocol=protocol)
    content = read_checkpoint(file)
    ours = content['meta']['dataset_meta']
    theirs = torch.load(file, weights_only=False)['meta']['dataset_meta']
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)


SCHEDULERS = {
    'OneCycleLR': dict(eta_max=1.0, total_steps=10),
    'ReduceOnPlateauLR': dict(monitor='loss'),
    'LinearLR': {},
    'CosineAnnealingLR': dict(T_max=5),
    'CosineRestartLR': dict(periods=[5], restart_weights=[1], eta_min=0),
    'MultiStepLR': dict(milestones=[2]),
    'StepLR': dict(step_size=2),
    'PolyLR': {},
    'ConstantLR': {},
    'ExponentialLR': dict(gamma=0.9),
}


@pytest.mark.parametrize('name', SCHEDULERS)
def test_states_of_schedulers_are_read(tmp_path, name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    for strategy in ('cos', 'linear') if name == 'OneCycleLR' else (None,):
        options = {**SCHEDULERS[name], **({'anneal_strategy': strategy} if strategy else {})}
        scheduler = PARAM_SCHEDULERS.build(dict(type=name, optimizer=optimizer, **options))
        file = saved(tmp_path / 'x.pth', scheduler.state_dict())
        ours = read_checkpoint(file)['meta']['dataset_meta']
        assert ours.keys() == scheduler.state_dict().keys()
        scheduler.load_state_dict(ours)


@pytest.mark.parametrize('whole', [False, True], ids=['state', 'instance'])
def test_message_hub_is_read(tmp_path, whole):
    hub = MessageHub('test_message_hub_is_read')
    hub.update_scalar('train/loss', 1.0)
    hub.update_scalar('train/loss', 2.0)
    hub.update_info('best_score', np.float32(0.5))
    file = saved(tmp_path / 'x.pth', hub if whole else hub.state_dict())
    ours = MessageHub('read')
    ours.load_state_dict(read_checkpoint(file)['meta']['dataset_meta'])
    assert ours.get_scalar('train/loss').mean() == 1.5
    assert ours.get_info('best_score') == np.float32(0.5)


class Own:
    """A class of a user's project."""

    def __init__(self) -> None:
        self.value = 1


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Sets(Calls):
    """Pickles to a call, and a state that is set on its result."""

    def __init__(self, state, function, *arguments) -> None:
        self.call = function, arguments, state


def own(path) -> object:
    return Own()


def system(path) -> object:
    return Calls(os.system, f'touch {path}')


def evaluated(path) -> object:
    return Calls(eval, f'open({str(path)!r}, "w")')


REFUSED = {
    'class of a user': (own, r'test_unpickling\.Own'),
    'system': (system, r'(posix|nt)\.system'),
    'eval': (evaluated, r'builtins\.eval'),
    'module': (lambda path: nn.Linear(1, 1), r'torch\.nn\.modules\.linear\.Linear'),
    'getattr': (lambda path: Calls(getattr, HistoryBuffer, '__init__'), r'builtins\.getattr'),
    'state of a function': (
        lambda path: Sets((None, {'__doc__': 'changed'}), getattr, HistoryBuffer, 'mean'),
        r'the state of .*HistoryBuffer\.mean',
    ),
    'state of a dtype': (
        lambda path: Sets((3, '|', None, None, None, -1, -1, 0), np.dtype, 'O', False, True),
        r'the state of numpy\.dtype',
    ),
    'torch.load': (lambda path: Calls(torch.storage._load_from_bytes, b''), '_load_from_bytes'),
    'records': (lambda path: np.zeros(1, [('a', 'O')]), r'numpy\.dtype'),
}


@pytest.mark.parametrize('protocol', [2, 5])
@pytest.mark.parametrize('name', REFUSED)
def test_unsafe_value_is_refused_by_name_with_two_ways_out(tmp_path, name, protocol):
    make, words = REFUSED[name]
    file = saved(tmp_path / 'x.pth', make(tmp_path / 'ran'), pickle_protocol=protocol)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(file)
    message = str(error.value)
    assert '\n' not in message
    for part in (file, f'FOCAL_MM_TRUST={file}', f'--trust {file}', 'weights convert'):
        assert part in message
    assert error.match(words)
    assert HistoryBuffer.mean.__doc__ != 'changed'
    # The first way out, which runs nothing either.
    convert(file, tmp_path / 'new.pth')
    assert torch.load(tmp_path / 'new.pth', weights_only=True)['state_dict'] == {'w': torch.ones(1)}
    assert not (tmp_path / 'ran').exists()


def test_trusted_file_is_loaded_whole(tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_TRUST', '')
    file = saved(tmp_path / 'x.pth', Own())
    other = saved(tmp_path / 'y.pth', Own())
    trust(file)
    assert read_checkpoint(file)['meta']['dataset_meta'].value == 1
    with pytest.raises(CheckpointError, match=r'y\.pth: refused'):
        read_checkpoint(other)
    trust(other)
    for path in (file, other):
        read_checkpoint(path)


def test_values_of_unsafe_classes_are_empty(tmp_path):
    file = saved(tmp_path / 'x.pth', [Own(), np.zeros(1, [('a', 'i4')]), np.ma.array([1]), 3])
    *empty, last = load(pathlib.Path(file), omit=True)['meta']['dataset_meta']
    assert all(isinstance(value, Omitted) for value in empty[:1])
    assert last == 3


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)), str(tmp_path / 'x.pt'))
    with pytest.raises(CheckpointError, match='TorchScript'):
        read_checkpoint(tmp_path / 'x.pt')
