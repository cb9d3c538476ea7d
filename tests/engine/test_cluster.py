"""Runs on several machines: two agents of torchrun with a rendezvous; processes are killed."""

import os
import signal
import socket
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from tiny_run import At, arguments_of_runner
from torch import Tensor, distributed, nn
from torch.utils.data import Dataset

from focal_mm.backbones import FocalNet
from focal_mm.engine import DurableFlexibleRunner, DurableRunner, find_newest

pytestmark = pytest.mark.stock

LENGTH = 16  # four batches of 4, or of 2 in each of two processes
SHARDED = dict(type='focal_mm.ShardedStrategy', sync_bn='mmcv')


class Pictures(Dataset):
    """Pictures that follow from their index."""

    metainfo: ClassVar = dict(classes=('a', 'b'))

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return dict(x=torch.randn(3, 16, 16, generator=generator), y=torch.tensor(index % 2.0))


class Classifier(BaseModel):
    """A FocalNet with batch statistics behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = FocalNet(
            arch=dict(embed_dims=8, depths=(1, 2)),
            focal_levels=1,
            out_indices=(1,),
            with_cp=True,
            drop_path_rate=0.0,
        )
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor, y: Tensor, mode: str = 'tensor') -> object:
        (features,) = self.backbone(torch.stack(list(x)))
        found = self.head(self.norm(features).mean((2, 3))).squeeze(1)
        if mode == 'loss':
            return dict(loss=(found - torch.stack(list(y))).square().mean())
        return [dict(score=value) for value in found]


class Score(BaseMetric):
    def process(self, data_batch: dict, data_samples: list[dict]) -> None:
        self.results.extend(sample['score'].item() for sample in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(mean=sum(results) / len(results), count=len(results))


def train(
    folder: Path,
    batch: int,
    sharded: bool = False,
    kill_at: int | None = None,
    note: Path | None = None,
):
    """Train for two epochs, or until a process is killed; return the runner, losses and scores."""
    torch.manual_seed(0)
    losses: list[float] = []
    scores: dict[str, float] = {}

    def act(runner) -> None:
        losses.append(float(runner.message_hub.get_scalar('train/loss').current()))
        if runner.iter + 1 == kill_at and get_rank() == 1:
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    hook = At(0, act)
    hook.after_train_iter = lambda runner, *_, **__: act(runner)
    hook.after_val_epoch = lambda runner, metrics: scores.update(metrics)
    checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False, max_keep_ckpts=1)
    wrapper = dict(
        optimizer=dict(type='SGD', lr=0.2, momentum=0.9, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, flat_decay_mult=0.0),
        clip_grad=dict(max_norm=0.3),
        accumulative_counts=2,
    )

    def loader(size: int, shuffle: bool) -> dict:
        sampler = dict(type='DefaultSampler', shuffle=shuffle)
        return dict(dataset=Pictures(), batch_size=size, num_workers=0, sampler=sampler)

    fields = arguments_of_runner(folder)
    fields.update(
        model=Classifier(),
        train_dataloader=loader(batch, True),
        val_dataloader=loader(3, False),
        val_evaluator=dict(type=Score),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=wrapper,
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[hook],
        resume='auto',
        launcher='pytorch' if distributed.is_initialized() else 'none',
        experiment_name=uuid.uuid4().hex,
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
    )
    if sharded:
        runner = DurableFlexibleRunner(**fields, strategy=dict(SHARDED))
    else:
        wrapped = dict(type='MMDistributedDataParallel', device_ids=None)
        cfg = dict(sync_bn='mmcv', model_wrapper_cfg=wrapped)
        runner = DurableRunner(**fields, cfg=cfg if distributed.is_initialized() else None)
    runner.train()
    return runner, losses, scores


def weights(folder: Path) -> dict[str, Tensor]:
    path, broken = find_newest(folder)
    assert path.endswith('iter_8.pth') and not broken
    state = torch.load(path, weights_only=False)
    assert state['optimizer']['state']
    return state['state_dict']


def work(folder: Path) -> None:
    """A process that torchrun starts, and starts again."""
    torch.set_num_threads(1)
    os.chdir(folder)  # mmengine collects results there
    distributed.init_process_group('gloo', timeout=timedelta(seconds=60))
    # Agents count their own restarts only, so a file says what has happened.
    note = folder / 'killed'
    killed = note.exists()
    distributed.barrier()
    if not killed:
        found = {
            name: train(folder / name, 2, name == 'sharded')[1:] for name in ('whole', 'sharded')
        }
        if get_rank() == 0:
            torch.save(found, folder / 'found.pt')
    runner, *_ = train(folder / 'parts', 2, True, kill_at=None if killed else 5, note=note)
    assert runner.iter == 8 and killed
    block = runner.model.module.backbone.layers[0].blocks[0]
    assert sum(p.numel() for p in block.parameters()) < sum(
        p.numel() for p in Classifier().backbone.layers[0].blocks[0].parameters()
    )
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo may abort


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The work folders of all runs, by two agents, as on two machines."""
    folder = tmp_path_factory.mktemp('cluster')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run'),
                *('--nnodes=2', '--nproc_per_node=1', '--max-restarts=2'),
                *('--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{port}', '--rdzv-id=test'),
                *('--monitor-interval=0.1', '--local-addr=127.0.0.1', __file__, str(folder)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | dict(
                PYTHONPATH=os.pathsep.join(
                    map(str, (Path(__file__).parents[2], Path(__file__).parent))
                ),
                OMP_NUM_THREADS='1',
                # With the store of the agents, processes find the addresses of those before them.
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1',
            ),
        )
        for _ in range(2)
    ]
    try:
        for agent in agents:
            out, _ = agent.communicate(timeout=400)
            assert agent.returncode == 0, out[-6000:]
    finally:
        for agent in agents:
            agent.kill()
    return folder


def test_sharded_run_equals_one_that_is_not(folder):
    torch.testing.assert_close(
        weights(folder / 'sharded'), weights(folder / 'whole'), atol=1e-5, rtol=0
    )
    found = torch.load(folder / 'found.pt')
    torch.testing.assert_close(found['sharded'], found['whole'], atol=1e-5, rtol=0)


def test_killed_process_is_restarted_and_nothing_differs(folder):
    whole = weights(folder / 'sharded')
    torch.testing.assert_close(weights(folder / 'parts'), whole, atol=0, rtol=0)


def test_two_processes_equal_one_with_the_batch_of_both(folder, tmp_path):
    _, losses, metrics = train(tmp_path, 4)
    their_losses, their_metrics = torch.load(folder / 'found.pt')['whole']
    assert metrics['Score/count' if 'Score/count' in metrics else 'count'] == LENGTH
    torch.testing.assert_close(losses, their_losses, atol=1e-5, rtol=0)
    torch.testing.assert_close(metrics, their_metrics, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights(tmp_path), weights(folder / 'whole'), atol=1e-5, rtol=0)
    assert weights(tmp_path)['norm.running_mean'].any()  # the statistics were updated


if __name__ == '__main__':
    work(Path(sys.argv[1]))
