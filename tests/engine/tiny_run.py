"""A run so small that it takes a second, in which everything is random that can be."""

import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import Dataset

from focal_mm.engine import DurableFlexibleRunner, DurableRunner

LENGTH = 12  # batches of 2 in an epoch: 6, and 3 for each of two processes
EPOCHS = 3
FLEXIBLE = dict(strategy=dict(type='SingleDeviceStrategy'))  # for DurableFlexibleRunner


class Noise(Dataset):
    """Samples that differ each time, by all three generators."""

    metainfo: ClassVar = dict(classes=('a', 'b'))

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict:
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return dict(x=torch.full((3,), index / LENGTH) + noise, y=torch.tensor(index % 2.0))


class Net(BaseModel):
    """A network with dropout and batch statistics."""

    def __init__(self, classes: int = 1, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, y: Tensor, mode: str = 'tensor') -> object:
        found = self.head(self.body(torch.stack(list(x)))).mean(1)
        if mode == 'loss':
            return dict(loss=(found - torch.stack(list(y))).square().mean())
        return [dict(score=value) for value in found]


class Score(BaseMetric):
    """A score, to have a best checkpoint."""

    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        random.random()
        self.results.extend(sample['score'].item() for sample in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(acc=float(np.mean(results)))


class Scaled(OptimWrapper):
    """What mmengine's AmpOptimWrapper does on a GPU, on the CPU that it refuses."""

    def __init__(self, **fields) -> None:
        super().__init__(**fields)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=4.0, growth_interval=5)

    def backward(self, loss: Tensor, **fields) -> None:
        self.loss_scaler.scale(loss).backward()
        self._inner_count += 1

    def step(self, **fields) -> None:
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()

    def state_dict(self) -> dict:
        return super().state_dict() | dict(loss_scaler=self.loss_scaler.state_dict())

    def load_state_dict(self, state_dict: dict) -> None:
        self.loss_scaler.load_state_dict(state_dict.pop('loss_scaler'))
        super().load_state_dict(state_dict)


class KilledError(Exception):
    """The end of a run that nobody expected."""


def make_runner(work_dir: Path, workers: int = 0, by_epoch: bool = True, **fields) -> DurableRunner:
    """A runner on the tiny data; ``fields`` replace arguments of the runner."""
    kind = DurableFlexibleRunner if 'strategy' in fields else DurableRunner
    return kind(**{**arguments_of_runner(work_dir, workers, by_epoch), **fields})


def arguments_of_runner(work_dir: Path, workers: int = 0, by_epoch: bool = True) -> dict:
    """The arguments of a runner on the tiny data."""
    loader = dict(
        dataset=Noise(),
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
    )
    train = (
        dict(by_epoch=True, max_epochs=EPOCHS)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=EPOCHS * 6, val_interval=6)
    )
    return dict(
        model=Net(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=train,
        val_dataloader=dict(
            dataset=Noise(),
            batch_size=4,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        val_cfg={},
        val_evaluator=dict(type=Score),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=8)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=by_epoch, save_best='acc'),
        ),
        randomness=dict(seed=1),
        log_level='ERROR',
        experiment_name=uuid.uuid4().hex,
    )


class At(Hook):
    """Hook that does something at the end of an iteration, counted from 1."""

    priority = 'LOWEST'

    def __init__(self, iteration: int, action: Callable[[DurableRunner], None]) -> None:
        self.iteration, self.action = iteration, action

    def after_train_iter(self, runner: DurableRunner, *args, **kwargs) -> None:
        if runner.iter + 1 == self.iteration:
            self.action(runner)


def kill(runner: DurableRunner) -> None:
    end_workers(runner)
    raise KilledError


def end_workers(runner: DurableRunner) -> None:
    """End the workers of the training loader, which otherwise wait to be collected."""
    iterator = runner.train_dataloader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
