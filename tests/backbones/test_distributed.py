"""DistributedDataParallel over all families: two processes on the CPU, without
``find_unused_parameters``, whatever reads the maps."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import focal_mm
from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer

pytestmark = pytest.mark.stock

FOCALNET = dict(arch=dict(embed_dims=8, depths=(1, 1, 1)), focal_levels=2, focal_windows=3)
NETS: dict[str, tuple[type[nn.Module], dict]] = {
    'focalnet': (FocalNet, FOCALNET),
    'focalnet_recomputed': (FocalNet, dict(FOCALNET, with_cp=True)),
    'focalnet_frozen': (FocalNet, dict(FOCALNET, frozen_stages=1)),
    'focalnet_raw': (FocalNet, dict(FOCALNET, out_norm=False)),
    'focal': (
        FocalTransformer,
        dict(
            arch=dict(embed_dims=8, depths=(1, 1, 1)),
            num_heads=2,
            window_size=4,
            focal_levels=2,
            focal_windows=3,
            expand_sizes=1,
        ),
    ),
    'mixformer': (
        MixFormer,
        dict(arch=dict(embed_dims=16, depths=(1, 1, 1)), num_heads=2, window_size=3),
    ),
}
# The maps that a backbone returns, and those that are read.
READERS = {
    'RetinaNet, FCOS: from the second map on': ((0, 1, 2), (1, 2)),
    'a head of one map': ((0, 1, 2), (1,)),
    'the first map': ((0, 1, 2), (0,)),
    'a classifier': ((0, 1, 2), (2,)),
    'a part of the stages, in another order': ((1, 0), (0,)),
    'one map twice': ((1, 1), (0,)),
}


class Reader(nn.Module):
    """A model that reads some of the maps."""

    def __init__(self, backbone: nn.Module, read: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        return sum(maps[i].square().mean() for i in self.read)


def train(rank: int, store: str) -> None:
    """Take two steps with each network and reader; both processes must end with equal weights."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', f'file://{store}', rank=rank, world_size=2)
    for name, (cls, arguments) in NETS.items():
        for reader, (out_indices, read) in READERS.items():
            torch.manual_seed(0)
            net = Reader(cls(**arguments, out_indices=out_indices), read).train()
            try:
                model = DistributedDataParallel(net)
                optimizer = torch.optim.SGD(model.parameters(), 0.1)
                for step in range(2):
                    torch.manual_seed(2 * step + rank)
                    optimizer.zero_grad()
                    model(torch.randn(2, 3, 32, 32)).backward()
                    optimizer.step()
            except RuntimeError as error:
                raise AssertionError(f'{name}, {reader}: {error}') from error
            mine = nn.utils.parameters_to_vector(net.parameters()).detach()
            both = [torch.empty_like(mine) for _ in range(2)]
            distributed.all_gather(both, mine)
            assert torch.equal(*both) and mine.isfinite().all(), f'{name}, {reader}'


def test_two_processes_train_whatever_reads_the_maps(tmp_path):
    folder = Path(focal_mm.__file__).parents[1]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / 'store')],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(folder)},
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            out, _ = worker.communicate(timeout=200)
            assert worker.returncode == 0, out[-3000:]
    finally:
        for worker in workers:
            worker.kill()


if __name__ == '__main__':
    train(int(sys.argv[1]), sys.argv[2])
