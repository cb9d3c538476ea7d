"""The stored cases: maps of the official code, its weights and images, made by a generator."""

import json
from dataclasses import dataclass
from pathlib import Path

import filler
import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent
ARGUMENTS = dict(embed_dim='embed_dims', focal_topK='focal_topk')
OMITTED = ('num_classes', 'drop_path_rate', 'img_size', 'use_layerscale')


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

    def worst_ratio(self, maps: tuple[Tensor, ...]) -> float:
        """Largest norm of a difference to the official maps, over the norm of the map."""
        return max(
            float(np.linalg.norm(ours.numpy()[:, ::8] - theirs) / np.linalg.norm(theirs))
            for ours, theirs in zip(maps, self.outputs)
        )


def load(name: str) -> Golden:
    """Load a case by its name."""
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
