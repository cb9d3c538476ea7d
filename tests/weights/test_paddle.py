import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from focal_mm.backbones import FocalNet
from focal_mm.weights import CheckpointError, convert, read_checkpoint, recognise
from focal_mm.weights.files import read_file
from focal_mm.weights.paddle import to_torch

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
    tensors = read_checkpoint(write(file, arrays, protocol))
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
    np.testing.assert_array_equal(read_checkpoint(write(file, {'a': array}))['a'], array)


def test_tensors_may_be_written_to(file):
    tensor = read_checkpoint(write(file, {'a': np.zeros(3)}))['a']
    assert (tensor.add_(1) == 1).all()


def test_bookkeeping_of_paddle_is_left_out(file):
    content = {'a': np.ones(2), 'StructuredToParameterName@@': {'a': 'linear_0.w_0'}}
    assert list(read_checkpoint(write(file, content, 2))) == ['a']


def test_file_that_paddle_wrote_computes_what_paddle_computed():
    # Paddle 3.3.1: Sequential(Linear(2, 3), BatchNorm(3)) in eval mode, on [[1, -2]].
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    net.load_state_dict(to_torch(read_checkpoint(DATA / 'linear_batchnorm.pdparams')))
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
        read_checkpoint(file)
    assert not marker.exists()
    assert str(file) in str(error.value) and function.__name__ in str(error.value)
    assert 'refused' in str(error.value)


def test_code_within_an_array_is_refused_and_does_not_run(file, tmp_path):
    marker = tmp_path / 'marker'
    array = np.array([Runs(os.system, f'touch {marker}')], dtype=object)
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_checkpoint(write(file, {'a': array}))
    assert not marker.exists()


@pytest.mark.parametrize(
    'array',
    [np.array(['text']), np.array([None]), np.zeros(2, [('x', 'f4')]), np.zeros(2, 'u2')],
    ids=['text', 'objects', 'records', 'bfloat16 as Paddle stores it'],
)
def test_arrays_of_anything_but_numbers_are_refused(file, array):
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_checkpoint(write(file, {'a': array}))


def test_array_with_fewer_bytes_than_its_shape_is_refused(file):
    write(file, {'a': np.zeros((4, 4), 'f4')})
    file.write_bytes(file.read_bytes().replace(b'K\x04K\x04\x86', b'K\x04K\x05\x86'))
    with pytest.raises(CheckpointError, match='net.pdparams: cut off'):
        read_checkpoint(file)


@pytest.mark.parametrize('kept', [0.0, 0.01, 0.5, 0.99])
def test_file_cut_off_is_refused_by_name(file, kept):
    data = write(file, {f'layer.{i}.weight': np.ones((8, 8)) for i in range(9)}).read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(CheckpointError, match='net.pdparams: (cut off|empty)'):
        read_checkpoint(file)


@pytest.mark.parametrize('content', [[], {}, {'a': 'text'}, {1: np.ones(2)}, [np.ones(2)]])
def test_pickle_of_something_else_is_refused_by_name(file, content):
    with pytest.raises(CheckpointError, match='net.pdparams'):
        read_checkpoint(write(file, content))


def test_missing_file_is_named(file):
    with pytest.raises(FileNotFoundError, match='net.pdparams'):
        read_checkpoint(file)


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


# ---- FocalNet ----------------------------------------------------------------------------------

PADDLE_FOCALNETS = (
    *(f'{size}_{field}' for size in ('tiny', 'small', 'base') for field in ('srf', 'lrf')),
    *(f'{size}_{levels}' for size in ('large', 'xlarge', 'huge') for levels in ('fl3', 'fl4')),
)


def small_focalnet(arch: str, **kwargs) -> FocalNet:
    return FocalNet(arch, embed_dims=8, depths=(1, 1, 2, 1), **kwargs)


def to_paddle(net: nn.Module, skip: str = '$') -> dict[str, np.ndarray]:
    """The state of a net as PaddleDetection has it: linear weights are (in, out)."""
    linear = {f'{name}.weight' for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    return {
        key: (value.T if key in linear else value).numpy().copy()
        for key, value in net.state_dict().items()
        if not re.match(skip, key)
    }


@pytest.mark.parametrize('arch', PADDLE_FOCALNETS)
def test_focalnet_of_paddledetection_loads_whole(file, arch):
    """Square weights, of ``proj``, are transposed as well; the classifier has no norms of maps."""
    source, net = small_focalnet(arch), small_focalnet(arch)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    arrays = to_paddle(source, skip=r'norm\d')
    arrays['norm.weight'] = arrays['norm.bias'] = np.ones(64, 'f4')
    arrays['head.weight'], arrays['head.bias'] = np.ones((64, 10), 'f4'), np.ones(10, 'f4')
    write(file, {**arrays, 'StructuredToParameterName@@': {'norm.weight': 'layer_norm_0.w_0'}}, 2)
    assert recognise(read_file(file)) == 'Paddle FocalNet'
    load_checkpoint(net, str(file))
    for key, value in source.state_dict().items():
        if not re.match(r'norm\d', key):
            assert net.state_dict()[key].equal(value), key


def test_focalnet_of_paddle_is_converted_to_a_plain_file(file, tmp_path):
    source = small_focalnet('tiny_lrf', out_indices=(3,))
    write(file, to_paddle(source))
    assert convert(file, tmp_path / 'new.safetensors')[0] == 'Paddle FocalNet'
    converted = read_checkpoint(tmp_path / 'new.safetensors')
    assert recognise(converted) == 'official FocalNet'
    assert all(converted[key].equal(value) for key, value in source.state_dict().items())


def test_focalnet_of_paddle_in_another_format_is_recognized_too(tmp_path):
    source = small_focalnet('tiny_lrf')
    tensors = {key: torch.from_numpy(value) for key, value in to_paddle(source).items()}
    torch.save({'model': tensors}, tmp_path / 'paddle.pth')
    net = small_focalnet('tiny_lrf')
    load_checkpoint(net, str(tmp_path / 'paddle.pth'), strict=True)
    key = 'layers.0.blocks.0.modulation.proj.weight'
    assert net.state_dict()[key].equal(source.state_dict()[key])


def test_detector_of_paddledetection_is_refused_in_one_line(file):
    """PP-YOLOE+ with FocalNet-T."""
    arrays = {
        f'backbone.{key}': value for key, value in to_paddle(small_focalnet('tiny_lrf')).items()
    }
    arrays['neck.fpn_stages.0.0.conv1.bn._mean'] = np.zeros(8, 'f4')
    arrays['neck.fpn_stages.0.0.conv1.bn._variance'] = np.ones(8, 'f4')
    arrays['yolo_head.pred_cls.0.weight'] = np.zeros((80, 8, 3, 3), 'f4')
    with pytest.raises(CheckpointError, match=r'PP-YOLOE\+ of PaddleDetection, another det') as e:
        read_checkpoint(write(file, arrays))
    assert '\n' not in str(e.value)
