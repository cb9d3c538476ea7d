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
    """Inputs and outputs of mmcv's ops.

    ``mmcv_ops.npz`` is of the compiled package. ``mmcv_kernels.npz`` is of its sources alone,
    compiled for the CPU: the C++ of ``psa_``, ``match_`` and ``edge_`` (deformable convolutions
    with samples on the edge of the map), the CUDA of ``carafe_``, ``masked_``, ``drp_``
    (deformable RoI pooling) and ``lanes``.
    """
    data = Path(__file__).parents[2] / 'data'
    return {
        key: torch.from_numpy(value).to(device)
        for name in ('mmcv_ops', 'mmcv_kernels')
        for key, value in np.load(data / f'{name}.npz').items()
    }
