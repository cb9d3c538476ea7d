import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_run, also in the processes tests start


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch) -> None:
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)
