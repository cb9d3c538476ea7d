"""Pictures of what the network sees, given to the visualizer during training."""

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from PIL import Image
from tiny_run import make_runner

from focal_mm.engine import LookHook

pytestmark = pytest.mark.stock


class Seeing(BaseModel):
    """A network that learns from noise what it does not see, with a backbone inside."""

    def __init__(self, **backbone: object) -> None:
        super().__init__()
        self.backbone = MODELS.build(
            dict(dict(type='FocalNet', embed_dims=8, depths=1), **backbone)
        )

    def forward(self, x: list, y: list, mode: str = 'tensor') -> object:
        noise = torch.stack(list(x)).mean(1)[:, None, None, None].expand(-1, 3, 32, 32)
        found = self.backbone(noise)[-1].mean((1, 2, 3))
        if mode == 'loss':
            return dict(loss=(found - torch.stack(list(y))).square().mean())
        return [dict(score=value) for value in found]


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'noise.png')
    return tmp_path / 'noise.png'


def test_sheets_reach_the_visualizer_and_leave_the_training_alone(picture, tmp_path):
    weights, shown = [], []
    hook = dict(type='focal_mm.LookHook', images=str(picture))
    often = dict(hook, stages=[0], by_epoch=False, interval=4)
    for number, hooks in enumerate([[], [hook, often]]):
        torch.manual_seed(0)
        runner = make_runner(
            tmp_path / f'run{number}',
            model=Seeing(drop_path_rate=0.2),
            custom_hooks=hooks,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
            default_hooks={},
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        )
        runner.train()
        weights.append(runner.model.state_dict())
        images = sorted((tmp_path / f'run{number}').rglob('vis_image/*.png'))
        shown.append({path.name: path for path in images})
    assert all(value.equal(weights[1][key]) for key, value in weights[0].items())
    assert shown[0] == {}
    assert set(shown[1]) == {
        f'look_noise_stage{n}_{step}.png' for n, step in ((1, 0), (1, 4), (4, 0), (4, 1))
    }
    first, last = (
        np.asarray(Image.open(shown[1][f'look_noise_stage4_{step}.png'])) for step in (0, 1)
    )
    assert first.shape == last.shape
    assert (first != last).any()


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(images='nowhere.png'), 'images=nowhere.png: no such file'),
        (dict(maps=['gate']), r"maps=\['gate'\]: choose from gates"),
        (dict(interval=0), 'interval=0'),
        (dict(query=(2, 0)), 'from 0 to 1'),
    ],
)
def test_wrong_argument_is_one_line_before_training(picture, options, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        LookHook(**{'images': str(picture), **options})
