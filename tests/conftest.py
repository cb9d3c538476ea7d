"""What all tests share, the golden cases among it: outputs of the official implementations for
weights that follow from their names."""

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
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


@pytest.fixture
def train_and_test() -> Callable[[Config], tuple[set[str], BaseDataElement]]:
    """Trains a config's model on two images and tests it on one; returns the names of
    the parameters of the patch embedding that have changed, and the prediction.
    """

    def step(cfg: Config) -> tuple[set[str], BaseDataElement]:
        init_default_scope(cfg.default_scope)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
        train, val = (
            DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.val_dataloader)
        )
        own = {n: p for n, p in model.named_parameters() if n.startswith('backbone.patch_embed.')}
        before = {name: value.clone() for name, value in own.items()}
        losses = model.train_step(pseudo_collate([train[0], train[1]]), wrapper)
        assert losses['loss'].isfinite()
        (predicted,) = model.eval().test_step(pseudo_collate([val[0]]))
        return {name for name in own if not own[name].equal(before[name])}, predicted

    return step


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
