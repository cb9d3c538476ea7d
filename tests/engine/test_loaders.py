"""A loader that fails ends the run in one line, and nothing is lost."""

import os
import re
import signal
import threading
import time

import pytest
import torch
from tiny_run import At, Noise, make_runner

from focal_mm.engine import find_newest, loops
from focal_mm.engine.loaders import LoaderError, alarm, named_deaths

pytestmark = pytest.mark.stock


class Failing(Noise):
    """Data that fails when it is asked for its 17th sample, in the second epoch."""

    def __init__(self, how: str) -> None:
        self.how, self.count = how, 0

    def __getitem__(self, index: int) -> dict:
        self.count += 1
        if self.count == 17 and self.how == 'hang':
            time.sleep(60)
        if self.count == 17 and self.how == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

    def get_data_info(self, index: int) -> dict:
        return dict(img_path=f'{index}.jpg')


def loader(dataset, **fields) -> dict:
    return dict(
        dataset=dataset,
        batch_size=2,
        sampler=dict(type='DefaultSampler', shuffle=True),
        **fields,
    )


@pytest.mark.parametrize(
    'how, workers, said',
    [
        ('hang', 0, r'no batch for 0.2 seconds; it was to give batch 3 of epoch 2, of \d+.jpg, \d'),
        ('hang', 1, r'no batch for 0.2 seconds; it was to give batch 3 of epoch 2, of \d+.jpg, \d'),
        ('kill', 1, 'a worker of a data loader has died'),
    ],
)
def test_failing_loader_is_named_and_nothing_is_lost(tmp_path, monkeypatch, how, workers, said):
    fields = dict(num_workers=1, timeout=60, persistent_workers=True) if workers else {}

    def be_impatient(runner) -> None:  # only now, for a busy machine starts workers slowly
        monkeypatch.setattr(loops, 'LOADER_TIMEOUT', 0.2)
        if workers:
            runner.train_dataloader._iterator._timeout = 0.2

    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', train_dataloader=loader(Noise()))
    whole.train()
    torch.manual_seed(0)
    runner = make_runner(
        tmp_path / 'run',
        train_dataloader=loader(Failing(how), **fields),
        custom_hooks=[At(8, be_impatient)] if how == 'hang' else [],
    )
    with pytest.raises(LoaderError, match=said) as stopped:
        runner.train()
    monkeypatch.setattr(loops, 'LOADER_TIMEOUT', 60)
    if how == 'hang':
        saved = re.search('all until then is in (.*): --resume auto', str(stopped.value))[1]
        assert find_newest(tmp_path / 'run').path == saved
        assert torch.load(saved, weights_only=False)['meta']['iter'] == 8
    runner = make_runner(tmp_path / 'run', resume=True, train_dataloader=loader(Noise()))
    runner.train()
    torch.testing.assert_close(runner.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_alarm_is_no_error_of_what_it_interrupts():
    before = signal.getsignal(signal.SIGALRM)

    def read() -> None:
        try:
            time.sleep(60)
        except Exception:
            pytest.fail('taken for an error of the picture')

    with pytest.raises(RuntimeError, match='timed out after 0.05'), alarm(0.05):
        read()
    assert signal.getsignal(signal.SIGALRM) is before
    with alarm(0.05):
        pass
    time.sleep(0.1)


@pytest.mark.parametrize('error', [EOFError, ConnectionRefusedError, FileNotFoundError])
def test_dying_worker_is_named_where_its_sockets_fail_first(monkeypatch, error):
    def tell(number, frame) -> None:
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')

    old = signal.signal(signal.SIGCHLD, tell)
    death = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGCHLD))
    try:
        with pytest.raises(RuntimeError, match='killed by signal'), named_deaths():
            death.start()
            raise error
    finally:
        death.join()
        signal.signal(signal.SIGCHLD, old)
    monkeypatch.setattr('focal_mm.engine.loaders._DEATH', 0)
    with pytest.raises(error), named_deaths():
        raise error
