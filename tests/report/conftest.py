"""Work folders as mmengine's runner leaves them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))  # for tiny_run

CONFIG = """\
model = dict(
    backbone=dict(depth=50, type='ResNet'),
    type='MaskRCNN')
train_cfg = dict(max_epochs=3, val_interval=1)
train_dataloader = dict(batch_size=4)
"""


@pytest.fixture
def write_start(tmp_path: Path) -> Callable[..., Path]:
    """Writes a start into a work folder: lines of training and validation; returns the folder."""

    def write(lines: list, name: str = '20260101_000000', run: str = 'run', config: str = CONFIG):
        start = tmp_path / run / name
        (start / 'vis_data').mkdir(parents=True)
        text = ''.join(
            (line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines
        )
        (start / 'vis_data' / 'scalars.json').write_text(text)
        (start / 'vis_data' / 'config.py').write_text(config)
        (tmp_path / run / 'config.py').write_text(config)
        return tmp_path / run

    return write


@pytest.fixture
def train_line() -> Callable[..., dict]:
    """Returns a line of training."""

    def line(step: int, loss: float = 1.0, **others: object) -> dict:
        times = dict(data_time=0.125, time=0.5)
        return dict(lr=0.1, loss=loss, **times, epoch=1 + step // 10, iter=step, step=step) | others

    return line
