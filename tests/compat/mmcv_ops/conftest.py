from pathlib import Path

import numpy as np
import pytest
import torch

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture
def golden(device) -> dict[str, torch.Tensor]:
    """Inputs and outputs of mmcv's compiled ops."""
    path = Path(__file__).parents[2] / 'data' / 'mmcv_ops.npz'
    return {key: torch.from_numpy(value).to(device) for key, value in np.load(path).items()}
