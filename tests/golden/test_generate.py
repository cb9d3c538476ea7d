import json
import subprocess
import sys
from pathlib import Path

import filler
import numpy as np
import pytest

GENERATE = Path(__file__).parent / 'generate.py'
DATA = Path(__file__).parents[1] / 'data' / 'golden'

# A stand-in for an official file: two stages, of which the first returns tokens, the second a map.
CLASSIFIER = """
import torch
from torch import nn
from sizes import CHANNELS

class Tokens(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(x.flatten(2).transpose(1, 2))

class Map(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.register_buffer('mask', torch.zeros(2, 2))

    def forward(self, x):
        return self.norm(x)

class Stage(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), block])

class Classifier(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 4, 4)
        self.layers = nn.ModuleList([Stage(Tokens(CHANNELS)), Stage(Map(CHANNELS))])
        self.head = nn.Linear(CHANNELS, num_classes)

    def forward(self, x):
        x = self.stem(x)
        tokens = self.layers[0].blocks[1](x)
        x = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        x = self.layers[1].blocks[1](x[:, :, ::2, ::2])
        return self.head(x.mean((2, 3)))
"""

# Our own network under the official argument names. It takes the place of the official classifier
# and detection backbone, of which the latter pads kernels of checkpoints as ours does.
BACKBONE = """
import focal_mm
from focal_mm.backbones import FocalNet
from mmengine.runner import load_checkpoint
from torch import nn

class Classifier(FocalNet):
    def __init__(self, embed_dim, num_classes, **kwargs):
        super().__init__(embed_dims=embed_dim, out_norm=False, **kwargs)
        self.norm = nn.LayerNorm(embed_dim * 8)

class Backbone(FocalNet):
    def __init__(self, embed_dim, **kwargs):
        super().__init__(embed_dims=embed_dim, out_norm=True, **kwargs)

    def init_weights(self, file):
        load_checkpoint(self, file)
"""


def generate(name: str, *options: str, out: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Run the generator in a process of its own and read what it writes."""
    command = [sys.executable, str(GENERATE), name, '--family', 'focalnet', '--out', str(out)]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads((out / f'{name}.json').read_text()), dict(np.load(out / f'{name}.npz'))


@pytest.fixture
def classifier(tmp_path) -> str:
    (tmp_path / 'sizes.py').write_text('CHANNELS = 16')
    (tmp_path / 'official.py').write_text(CLASSIFIER)
    return f'{tmp_path}/official.py:Classifier'


def test_classifier_gives_its_last_blocks_as_maps_and_its_logits(classifier, tmp_path):
    case, arrays = generate(
        'small',
        '--class',
        classifier,
        '--shape',
        '2',
        '3',
        '8',
        '20',
        '--arguments',
        '{"num_classes": 10}',
        out=tmp_path / 'out',
    )
    assert case['outputs'] == [[2, 16, 2, 5], [2, 16, 1, 3], [2, 10]]
    assert [arrays[f'out{i}'].shape for i in range(3)] == [(2, 2, 2, 5), (2, 2, 1, 3), (2, 10)]
    assert case['model'] == {'num_classes': 10}
    assert case['source'] == 'official.py:Classifier'


def test_weights_and_input_follow_from_their_names(classifier, tmp_path):
    case, arrays = generate(
        'small',
        '--class',
        classifier,
        '--shape',
        '1',
        '3',
        '8',
        '8',
        '--arguments',
        '{"num_classes": 10}',
        out=tmp_path,
    )
    assert list(case['checkpoint']) == [
        'stem.weight',
        'stem.bias',
        'layers.0.blocks.1.norm.weight',
        'layers.0.blocks.1.norm.bias',
        'layers.1.blocks.1.norm.weight',
        'layers.1.blocks.1.norm.bias',
        'layers.1.blocks.1.norm.running_mean',
        'layers.1.blocks.1.norm.running_var',
        'head.weight',
        'head.bias',
    ]
    state = filler.state_dict(case['checkpoint'])
    patches = filler.image('small', [1, 3, 8, 8]).reshape(3, 2, 4, 2, 4)
    tokens = np.einsum('cyaxb,dcab->yxd', patches, state['stem.weight']) + state['stem.bias']
    tokens = tokens - tokens.mean(-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-5)
    norm = 'layers.0.blocks.1.norm'
    tokens = tokens * state[f'{norm}.weight'] + state[f'{norm}.bias']
    assert arrays['out0'][0] == pytest.approx(tokens.transpose(2, 0, 1)[::8], abs=1e-5)
    assert arrays['stat0'] == pytest.approx(
        [tokens.mean(), tokens.std(), abs(tokens).max()], abs=1e-6
    )


@pytest.mark.parametrize(
    'name', ['focalnet_tiny_srf_same_kernels', 'focalnet_tiny_lrf_windows_11_9_9_7']
)
def test_a_case_of_the_repository_comes_out_again(tmp_path, name):
    (tmp_path / 'backbone.py').write_text(BACKBONE)
    official = json.loads((DATA / f'{name}.json').read_text())
    case, arrays = generate(
        name,
        '--class',
        f'{tmp_path}/backbone.py:Backbone',
        '--arguments',
        json.dumps(official['model']),
        '--pretrain',
        json.dumps(official['pretrain']),
        '--pretrain-class',
        f'{tmp_path}/backbone.py:Classifier',
        '--shape',
        *map(str, official['input_shape']),
        out=tmp_path,
    )
    for key in ('family', 'model', 'pretrain', 'name', 'input_shape', 'outputs', 'checkpoint'):
        assert case[key] == official[key]
    expected = np.load(DATA / f'{name}.npz')
    assert set(arrays) == set(expected.files)
    for key, array in arrays.items():
        assert array.dtype == expected[key].dtype
        assert array == pytest.approx(expected[key], abs=2e-4)


def test_missing_file_is_named():
    command = [sys.executable, str(GENERATE), 'x', '--family', 'focalnet']
    result = subprocess.run(
        [*command, '--class', 'nowhere.py:FocalNet'], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert 'nowhere.py: no such Python file' in result.stderr
