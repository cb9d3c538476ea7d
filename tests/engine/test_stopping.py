"""Signals, and values that are not finite, end a run without losing it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from tiny_run import FLEXIBLE, At, Net, Scaled, make_runner

from focal_mm.engine import NonFiniteError, find_newest, load_incident
from focal_mm.weights import CheckpointError

pytestmark = pytest.mark.stock

HERE = Path(__file__).parent


def send(number):
    return lambda runner: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    'number, status, fields', [(signal.SIGTERM, 143, FLEXIBLE), (signal.SIGINT, 130, {})]
)
def test_signal_saves_at_the_end_of_the_iteration(tmp_path, number, status, fields, capfd):
    before = signal.getsignal(number)
    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', **fields)
    whole.train()
    torch.manual_seed(0)
    hook = At(8, send(number))
    hook.priority = 'HIGHEST'
    runner = make_runner(tmp_path / 'run', custom_hooks=[hook], **fields)
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert stopped.value.code == status and signal.getsignal(number) is before
    assert 'again to stop at once' in capfd.readouterr().err
    path, broken = find_newest(tmp_path / 'run')
    assert Path(path).name == 'interrupted.pth' and not broken
    runner = make_runner(tmp_path / 'run', resume=True, **fields)
    runner.train()
    assert (runner.epoch, runner.iter) == (whole.epoch, whole.iter)
    torch.testing.assert_close(runner.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert not Path(path).exists()  # a later one is whole


@pytest.mark.parametrize('fields', [{}, FLEXIBLE])
def test_signal_in_validation_is_taken_there(tmp_path, fields, monkeypatch):
    ema = [dict(type='EMAHook', momentum=0.1)]
    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', custom_hooks=ema, **fields)
    whole.train()
    seen = []

    def score(self, data, found):
        seen.append(found)
        os.kill(os.getpid(), signal.SIGTERM)

    torch.manual_seed(0)
    few = dict(checkpoint=dict(type='CheckpointHook', interval=3, save_best='acc'))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr('tiny_run.Score.process', score)
        make_runner(tmp_path / 'run', custom_hooks=ema, default_hooks=few, **fields).train()
    assert len(seen) == 1
    fields = dict(fields, default_hooks=few, resume=True)
    runner = make_runner(tmp_path / 'run', custom_hooks=ema, **fields)
    runner.train()
    torch.testing.assert_close(runner.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    best = [run.message_hub.get_info('best_score') for run in (runner, whole)]
    assert best[0] == best[1]


def test_runs_in_threads_take_no_signals(tmp_path):
    runner = make_runner(tmp_path)
    thread = threading.Thread(target=runner.train)
    thread.start()
    thread.join()
    assert runner.iter == 18


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
import focal_mm
from tiny_run import At, make_runner

def signal_twice(runner):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

def die_in_the_second(descriptor):
    if 'epoch_2.pth' in os.readlink(f'/proc/self/fd/{{descriptor}}'):
        os.kill(os.getpid(), signal.SIGKILL)

hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1))
for how in ('twice', 'writing'):
    pid = os.fork()
    if pid == 0:
        if how == 'writing':
            os.fsync = die_in_the_second
        custom = [At(8, signal_twice)] if how == 'twice' else []
        make_runner({folder!r} + how, default_hooks=hooks, custom_hooks=custom).train()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_death_of_the_process_leaves_a_whole_checkpoint(tmp_path):
    script = SCRIPT.format(here=str(HERE), folder=f'{tmp_path}/')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        env=os.environ | dict(PYTHONPATH=str(HERE.parents[1]), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    statuses = [str(-number.value) for number in (signal.SIGTERM, signal.SIGKILL)]
    assert done.stdout.split()[-2:] == statuses, done.stderr[-2000:]
    for how in ('twice', 'writing'):
        assert find_newest(tmp_path / how) == (str(tmp_path / how / 'epoch_1.pth'), [])


class Exploding(Net):
    """A network that goes wrong in one of three ways in its eighth iteration."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.count = how, 0

    def forward(self, x, y, mode='tensor'):
        out = super().forward(x, y, mode)
        if mode == 'loss':
            self.count += 1
            if self.count >= 8 and self.how == 'loss':
                out['loss'] = out['loss'] / 0
            if self.count == 8 and self.how == 'gradient':
                out['loss'] = out['loss'] + (self.head.bias * 0).sqrt().sum()
        return out


def test_first_bad_gradient_ends_the_run_before_it_is_used(tmp_path):
    net = Exploding('gradient')
    runner = make_runner(tmp_path, model=net)
    with pytest.raises(
        NonFiniteError, match='iteration 8: the gradient of head.bias is not finite'
    ):
        runner.train()
    assert all(value.isfinite().all() for value in net.state_dict().values())
    incident = load_incident(tmp_path / 'nonfinite_iter_8.pt')
    assert incident['gradients'] == ['head.bias'] and incident['module'] is None
    assert incident['seed'] == 1 and len(incident['batch']['x']) == 2
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), [])


def test_first_bad_loss_ends_the_run_and_names_the_module(tmp_path):
    net = Net()

    def spoil(runner):
        with torch.no_grad():
            net.body[0].weight[0, 0] = torch.nan

    with pytest.raises(NonFiniteError, match=r'iteration 8: .*output of body.0 \(Linear\)'):
        make_runner(tmp_path, model=net, custom_hooks=[At(7, spoil)]).train()
    incident = load_incident(tmp_path / 'nonfinite_iter_8.pt')
    assert 'body.0' in incident['module'] and not torch.isfinite(
        torch.tensor(incident['losses']['loss'])
    )


class Bfloat16(OptimWrapper):
    """What mmengine's AmpOptimWrapper does in bfloat16 on a GPU, on the CPU."""

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


@pytest.mark.parametrize('wrapper', [OptimWrapper, Bfloat16])
def test_an_infinite_loss_ends_the_run_too(tmp_path, wrapper):
    net = Exploding('loss')
    wrapper = wrapper(optimizer=torch.optim.SGD(net.parameters(), 0.01))
    with pytest.raises(NonFiniteError, match='iteration 8: loss is inf'):
        make_runner(tmp_path, model=net, optim_wrapper=wrapper, param_scheduler=None).train()
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), [])


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    net = Net()

    def spoil(runner):
        with torch.no_grad():
            net.body[0].weight[0, 0] = torch.nan

    hook = At(12, spoil)
    hook.priority = 'NORMAL'  # before the checkpoint of the second epoch
    with pytest.raises(NonFiniteError, match='body.0.weight is not finite at iteration'):
        make_runner(tmp_path, model=net, custom_hooks=[hook]).train()
    path = find_newest(tmp_path).path
    assert Path(path).name == 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['state_dict']['body.0.weight'][0, 0] = torch.inf
    torch.save(content, path)
    for resume in (True, False):
        runner = make_runner(tmp_path, load_from=path, resume=resume)
        with pytest.raises(CheckpointError, match='epoch_1.pth: body.0.weight .*an earlier'):
            runner.train()


def test_gradients_that_no_scale_mends_end_the_run(tmp_path):
    net = Net()
    net.head.bias.register_hook(lambda gradient: gradient * torch.nan)
    wrapper = Scaled(optimizer=torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(NonFiniteError, match=r'iteration 3: .*scale of gradients has fallen'):
        make_runner(tmp_path, model=net, optim_wrapper=wrapper).train()


def test_incident_is_plain_and_shows_the_way_to_the_nan(tmp_path):
    with pytest.raises(NonFiniteError):
        make_runner(tmp_path, model=Exploding('gradient')).train()
    path = tmp_path / 'nonfinite_iter_8.pt'
    incident = load_incident(path)  # refuses what is not plain
    names = [name for name, _ in incident['modules']]
    assert names[-2:] == ['the output of head (Linear)', 'the output of the model (Exploding)']
    torch.save(dict(state_dict=Net().state_dict()), path)
    with pytest.raises(CheckpointError, match='nonfinite_iter_8.pt: not written at a loss'):
        load_incident(path)
