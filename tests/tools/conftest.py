import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def tiny():
    """Options that leave next to nothing of Mask R-CNN: 8 images to train on, 4 to test."""
    return [
        'model.backbone.embed_dims=8',
        'model.backbone.depths=[1,1,1,1]',
        'model.neck.in_channels=[8,16,32,64]',
        'model.roi_head.bbox_head.fc_out_channels=16',
        'model.roi_head.mask_head.num_convs=1',
        'train_dataloader.dataset.indices=8',
        'val_dataloader.dataset.indices=4',
        'test_dataloader.dataset.indices=4',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
    ]


@pytest.fixture(scope='session')
def run_tool():
    """Runs a tool as a user does; returns its output, and fails the test where the tool fails."""

    def run(name, *args):
        command = [sys.executable] if name.endswith('.py') else ['bash']
        # The shell scripts call `python`, which is to be this one.
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = str(free.getsockname()[1])
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
        done = subprocess.run(
            [*command, str(REPO / 'tools' / name), *map(str, args)],
            cwd=REPO,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(PYTHONPATH=str(REPO), PATH=path, PORT=port, OMP_NUM_THREADS='1'),
        )
        assert done.returncode == 0, done.stdout[-5000:]  # the end of a log tells why
        return done.stdout

    return run
