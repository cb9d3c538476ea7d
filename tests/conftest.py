"""What all tests share, the golden cases among it: outputs of the official implementations for
weights that follow from their names."""

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

os.environ['MPLBACKEND'] = 'Agg'
GOLDEN = Path(__file__).parent / 'data' / 'golden'
sys.path.insert(0, str(GOLDEN))

import filler  # noqa: E402

import focal_mm  # noqa: E402, F401  before any test module imports mmcv.ops

# Tests that run at once share the processors.
torch.set_num_threads(
    max(1, (os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1')))
)

ARGUMENTS = dict(embed_dim='embed_dims', focal_topK='focal_topk')
OMITTED = ('num_classes', 'drop_path_rate', 'img_size', 'use_layerscale')


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def cache_of_the_run(tmp_path_factory) -> None:
    """Keeps downloads and drawn datasets out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FOCAL_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.delenv('FOCAL_MM_WEIGHTS', raising=False)
        yield


@dataclass
class Golden:
    """One case; ``arguments`` are those of our backbone."""

    arguments: dict
    checkpoint: dict[str, Tensor]
    image: Tensor
    shapes: list[list[int]]
    outputs: list[np.ndarray]

    def worst(self, maps: tuple[Tensor, ...]) -> float:
        """Largest absolute difference to the official maps, of which every 8th channel is kept."""
        assert [list(m.shape) for m in maps] == self.shapes[: len(maps)]
        return max(
            float(np.abs(ours.numpy()[:, ::8] - theirs).max())
            for ours, theirs in zip(maps, self.outputs)
        )


@pytest.fixture
def golden():
    """Loads a case by name."""

    def load(name: str) -> Golden:
        case = json.loads((GOLDEN / f'{name}.json').read_text())
        arguments = {ARGUMENTS.get(k, k): v for k, v in case['model'].items() if k not in OMITTED}
        if case['model'].get('use_layerscale'):
            arguments['layer_scale_init_value'] = 1e-4
        arguments['out_norm'] = 'norm0.weight' in case['checkpoint']
        checkpoint = {
            name: torch.from_numpy(np.ascontiguousarray(value))
            for name, value in filler.state_dict(case['checkpoint']).items()
        }
        saved = np.load(GOLDEN / f'{name}.npz')
        return Golden(
            arguments,
            checkpoint,
            torch.from_numpy(filler.image(name, case['input_shape'])),
            case['outputs'],
            [saved[f'out{i}'] for i in range(len(case['outputs']))],
        )

    return load
