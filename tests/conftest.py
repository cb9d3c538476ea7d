"""What all tests share."""
import os
import random

import numpy as np
import pytest
import torch

os.environ['MPLBACKEND'] = 'Agg'

import focal_mm  # noqa: E402, F401  before any test module imports mmcv.ops


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def cache_of_the_run(tmp_path_factory) -> None:
    """Keeps downloads and drawn datasets out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FOCAL_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.delenv('FOCAL_MM_WEIGHTS', raising=False)
        yield
