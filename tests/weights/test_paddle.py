import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from focal_mm.weights import CheckpointError
from focal_mm.weights.paddle import read_pdparams, to_torch

pytestmark = pytest.mark.stock

DATA = Path(__file__).parents[1] / 'data'


def write(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'net.pdparams'


# ---- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_arrays_come_back_in_every_protocol_of_paddle(file, protocol):
    arrays = {
        'a.weight': np.random.rand(3, 2).astype('f4'),
        'b._mean': np.random.rand(5),
        'c': np.array(7),
        'd': np.arange(6).reshape(2, 3),
        'e': np.ones(2, np.float16),
    }
    tensors = read_pdparams(write(file, arrays, protocol))
    assert list(tensors) == list(arrays)
    for name, array in arrays.items():
        assert tensors[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize(
    'array',
    [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3).astype('>f8')],
    ids=['columns first', 'big endian'],
)
def test_arrays_of_any_memory_order_come_back(file, array):
    np.testing.assert_array_equal(read_pdparams(write(file, {'a': array}))['a'], array)


def test_tensors_may_be_written_to(file):
    tensor = read_pdparams(write(file, {'a': np.zeros(3)}))['a']
    assert (tensor.add_(1) == 1).all()


def test_bookkeeping_of_paddle_is_left_out(file):
    content = {'a': np.ones(2), 'StructuredToParameterName@@': {'a': 'linear_0.w_0'}}
    assert list(read_pdparams(write(file, content, 2))) == ['a']


def test_file_that_paddle_wrote_computes_what_paddle_computed():
    # Paddle 3.3.1: Sequential(Linear(2, 3), BatchNorm(3)) in eval mode, on [[1, -2]].
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    net.load_state_dict(to_torch(read_pdparams(DATA / 'linear_batchnorm.pdparams')))
    with torch.no_grad():
        out = net(torch.tensor([[1.0, -2.0]]))
    torch.testing.assert_close(out, torch.tensor([[0.535744309, -0.860036612, -1.415828943]]))


# ---- what is refused ---------------------------------------------------------------------------


class Runs:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('function', [eval, exec, os.system])
def test_pickled_code_is_refused_and_does_not_run(file, tmp_path, function, protocol):
    marker = tmp_path / 'marker'
    code = f'touch {marker}' if function is os.system else f'open({str(marker)!r}, "w")'
    write(file, {'a': np.ones(2), 'b': Runs(function, code)}, protocol)
    with pytest.raises(CheckpointError) as error:
        read_pdparams(file)
    assert not marker.exists()
    assert str(file) in str(error.value) and function.__name__ in str(error.value)
    assert 'refused' in str(error.value)


def test_code_within_an_array_is_refused_and_does_not_run(file, tmp_path):
    marker = tmp_path / 'marker'
    array = np.array([Runs(os.system, f'touch {marker}')], dtype=object)
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_pdparams(write(file, {'a': array}))
    assert not marker.exists()


@pytest.mark.parametrize(
    'array',
    [np.array(['text']), np.array([None]), np.zeros(2, [('x', 'f4')]), np.zeros(2, 'u2')],
    ids=['text', 'objects', 'records', 'bfloat16 as Paddle stores it'],
)
def test_arrays_of_anything_but_numbers_are_refused(file, array):
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_pdparams(write(file, {'a': array}))


def test_array_with_fewer_bytes_than_its_shape_is_refused(file):
    write(file, {'a': np.zeros((4, 4), 'f4')})
    file.write_bytes(file.read_bytes().replace(b'K\x04K\x04\x86', b'K\x04K\x05\x86'))
    with pytest.raises(CheckpointError, match='net.pdparams: cut off'):
        read_pdparams(file)


@pytest.mark.parametrize('kept', [0.0, 0.01, 0.5, 0.99])
def test_file_cut_off_is_refused_by_name(file, kept):
    data = write(file, {f'layer.{i}.weight': np.ones((8, 8)) for i in range(9)}).read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match='net.pdparams: cut off'):
        read_pdparams(file)


@pytest.mark.parametrize('content', [[], {}, {'a': 'text'}, {1: np.ones(2)}, [np.ones(2)]])
def test_pickle_of_something_else_is_refused_by_name(file, content):
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_pdparams(write(file, content))


def test_checkpoint_of_pytorch_is_refused_by_name(file):
    torch.save({'a': torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match='net.pdparams: cut off or not a checkpoint'):
        read_pdparams(file)


def test_missing_file_is_named(file):
    with pytest.raises(FileNotFoundError, match='net.pdparams'):
        read_pdparams(file)


# ---- names and shapes --------------------------------------------------------------------------


def test_linear_weights_are_transposed_and_statistics_renamed():
    ours = to_torch(
        {
            'fc.weight': torch.arange(6).view(2, 3),
            'fc.bias': torch.zeros(3),
            'conv.weight': torch.zeros(4, 2, 1, 1),
            'attn.relative_position_bias_table': torch.zeros(9, 2),
            'bn.weight': torch.ones(3),
            'bn._mean': torch.zeros(3),
            'bn._variance': torch.ones(3),
        }
    )
    assert ours['fc.weight'].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert ours['conv.weight'].shape == (4, 2, 1, 1)
    assert ours['attn.relative_position_bias_table'].shape == (9, 2)
    assert {'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked'} <= ours.keys()
    assert not {'bn._mean', 'bn._variance'} & ours.keys()


def test_state_dict_of_pytorch_stays_as_it_is():
    state_dict = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    assert to_torch(state_dict) is state_dict
