"""Kinds of files: arrays of each are loaded, or the kind is named with the way out."""

import argparse
import collections
import gzip
import io
import pickle
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor

from focal_mm.backbones import FocalNet
from focal_mm.weights import CheckpointError, convert, read_checkpoint, trust

pytestmark = pytest.mark.stock


@pytest.fixture(scope='module')
def weights() -> dict[str, Tensor]:
    net = FocalNet(arch=dict(embed_dims=8, depths=(1,)), focal_levels=1, focal_windows=3)
    return net.state_dict()


@pytest.fixture
def arrays(weights) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in weights.items()}


def holds(content: dict, weights: dict) -> bool:
    found = content.get('state_dict', content)
    return found.keys() == weights.keys() and all(found[key].equal(weights[key]) for key in weights)


# ---- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', [0, 1, 2, 4, 5])
def test_pickle_of_detectron2_is_read(tmp_path, arrays, weights, protocol):
    content = {'model': arrays, '__author__': 'third party', 'matching_heuristics': True}
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, protocol))
    assert holds(read_checkpoint(tmp_path / 'x.pkl'), weights)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_of_numpy_are_read(tmp_path, arrays, weights, save):
    save(tmp_path / 'x.npz', **arrays)
    assert holds(read_checkpoint(tmp_path / 'x.npz'), weights)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda weights: {'state_dict': {key: value.numpy() for key, value in weights.items()}},
        lambda weights: {'state_dict': {**weights, 'epoch': 3, 'extra': None}},
        lambda weights: {'checkpoint': {'model': {'state_dict': weights}}, 'epoch': 3},
        lambda weights: {**weights, 'epoch': 3},
        lambda weights: {'net': weights, 'acc': 0.5},
        lambda weights: {'model_state_dict': weights, 'optimizer_state_dict': {'state': {0: {}}}},
    ],
    ids=['arrays', 'other values', 'nested', 'beside a number', 'net', 'model_state_dict'],
)
def test_weights_are_found_wherever_a_trainer_puts_them(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / 'x.pth')
    assert holds(read_checkpoint(tmp_path / 'x.pth'), weights)


@pytest.mark.parametrize('name', ['file://{}', '{}'])
def test_addresses_of_files_and_paths_are_read(tmp_path, weights, name):
    path = tmp_path / 'a file.pth'
    torch.save(weights, path)
    address = path.as_uri() if name.startswith('file') else path
    assert holds(read_checkpoint(address), weights)


def test_home_is_expanded(tmp_path, weights, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(weights, tmp_path / 'x.pth')
    assert holds(read_checkpoint('~/x.pth'), weights)


def test_torchs_own_rule_does_not_keep_ours_from_reading(tmp_path, weights, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    torch.save(dict(state_dict=weights, args=argparse.Namespace(lr=1)), tmp_path / 'x.pth')
    assert holds(read_checkpoint(tmp_path / 'x.pth'), weights)
    monkeypatch.setenv('FOCAL_MM_TRUST', str(tmp_path / 'y.pth'))
    torch.save(dict(state_dict=weights, model=torch.nn.ReLU()), tmp_path / 'y.pth')
    with pytest.raises(CheckpointError, match=r'refused.*TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        read_checkpoint(tmp_path / 'y.pth')


def test_bare_pickle_can_be_trusted_too(tmp_path, weights, arrays, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_TRUST', '')
    path = tmp_path / 'x.pdparams'
    path.write_bytes(pickle.dumps({**arrays, 'made by': argparse.ArgumentParser}))
    with pytest.raises(CheckpointError, match=f'refused.*ArgumentParser.*FOCAL_MM_TRUST={path}'):
        read_checkpoint(path)
    convert(path, tmp_path / 'new.pth')
    assert holds(read_checkpoint(tmp_path / 'new.pth'), weights)
    trust(path)
    assert read_checkpoint(path)['made by'] is argparse.ArgumentParser


# ---- settings beside the weights ----------------------------------------------------------------


class Settings(dict):
    """As yacs has it: a dict with attributes."""

    def __init__(self, *args, **values) -> None:
        super().__init__(*args, **values)
        self.__dict__['__immutable__'] = True


class Names(list):
    """A list of a user's project."""


class Weights(collections.OrderedDict):
    """A state dict of a user's project."""


@pytest.fixture
def yacs(monkeypatch):
    """A package whose class ``CfgNode`` the reader must not import."""
    module = types.ModuleType('yacs.config')
    node = type('CfgNode', (Settings,), dict(__module__='yacs.config'))
    module.CfgNode = node
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    return node


@pytest.mark.parametrize('protocol', [2, 5])
def test_settings_of_the_official_code_are_plain_dicts(tmp_path, weights, yacs, protocol):
    config = yacs(DATA=yacs(IMG_SIZE=224, LIST=Names(['a', Settings(b=1)])), AUG=yacs())
    content = {'model': weights, 'config': config, 'space': argparse.Namespace(cfg=(config,))}
    torch.save(content, tmp_path / 'x.pth', pickle_protocol=protocol)
    del sys.modules['yacs.config'], sys.modules['yacs']
    read = read_checkpoint(tmp_path / 'x.pth')
    assert holds(read, weights)
    plain = {'DATA': {'IMG_SIZE': 224, 'LIST': ['a', {'b': 1}]}, 'AUG': {}}
    assert read['config'] == plain and read['space'].cfg == (plain,)
    assert {type(value) for value in (read['config'], read['config']['AUG'])} == {dict}
    assert type(read['config']['DATA']['LIST']) is list


def test_state_dict_of_another_class_is_read(tmp_path, weights):
    torch.save({'model': Weights(weights)}, tmp_path / 'x.pth')
    assert holds(read_checkpoint(tmp_path / 'x.pth'), weights)


# ---- other kinds --------------------------------------------------------------------------------


def zipped(path) -> None:
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('net.pth.part', b'')


def tarred(path) -> None:
    with tarfile.open(path, 'w') as file:
        file.addfile(tarfile.TarInfo('net'), io.BytesIO())


KINDS = {
    'x.gz': (lambda path: gzip.open(path, 'wb').close(), 'gzip; uncompress'),
    'x.tar': (tarred, 'tar archive; unpack it'),
    'x.zip': (zipped, r'zip archive with net\.pth\.part; unpack it'),
    'x.npy': (lambda path: np.save(path, np.ones(3)), 'NumPy array without a name; .*savez'),
    'objects.npz': (
        lambda path: np.savez(path, a=np.array([print], object)),
        'refused, since it stores a, an array of Python objects',
    ),
    'x.h5': (lambda path: path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(99)), 'HDF5 file.*savez'),
    'x.onnx': (lambda path: path.write_bytes(b'\x08\x07\x12\x07pytorch'), 'ONNX graph'),
    'x.msgpack': (lambda path: path.write_bytes(b'\xde\0\x10\xa3abc'), 'Flax; .*savez'),
    'lfs.pth': (lambda path: path.write_text('version https://git-lfs.github'), 'git lfs pull'),
    'page.pth': (lambda path: path.write_text('\n<!DOCTYPE html>'), 'web page; get the file again'),
    'index.json': (lambda path: path.write_text('{"weight_map": {}}'), 'JSON.*files that it names'),
    'list.pkl': (lambda path: path.write_bytes(pickle.dumps([1])), 'holds a list, and no dict'),
    'noise.pth': (lambda path: path.write_bytes(b'J\xf1x noise'), r'no kind.*begins with b.J\\xf1'),
    'empty.pth': (lambda path: path.touch(), 'empty; get the file again'),
}


@pytest.mark.parametrize('name', KINDS)
def test_kind_of_any_other_file_is_named(tmp_path, name):
    write, words = KINDS[name]
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf'{name}: .*{words}') as error:
        read_checkpoint(tmp_path / name)
    assert '\n' not in str(error.value)


def test_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='is a folder; give the checkpoint file'):
        read_checkpoint(tmp_path)
