"""A run that is interrupted and goes on ends with the weights of one that was not, to the bit."""

import os
import random
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from signal import SIGTERM

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.visualization import Visualizer
from tiny_run import EPOCHS, FLEXIBLE, At, KilledError, Net, Scaled, end_workers, kill, make_runner
from torch import distributed, multiprocessing

from focal_mm.engine import DurableCheckpointHook
from focal_mm.engine.checkpoint_hook import KEY
from focal_mm.weights import CheckpointError

pytestmark = pytest.mark.stock

EMA = dict(type='EMAHook', momentum=0.1)
ACCUMULATING = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=2)


def every_iteration(**fields) -> dict:
    """Default hooks that save at every iteration, of an epoch too."""
    checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False, save_best='acc', **fields)
    return dict(default_hooks=dict(checkpoint=checkpoint))


def plain(value: object) -> object:
    """Nested values with lists in place of tensors, which compare bit by bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, (list, tuple)) else value


def everything(runner) -> object:
    """What has to be equal in the end."""
    hub = runner.message_hub
    ema = [hook.ema_model.state_dict() for hook in runner.hooks if hasattr(hook, 'ema_model')]
    found = dict(
        network=runner.model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
        schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers],
        ema=ema,
        best=(hub.get_info('best_score'), Path(hub.get_info('best_ckpt')).name),
    )
    return plain(found)


def run_in_parts(folder: Path, ends: list[int], workers: int = 0, by_epoch: bool = True, **fields):
    """Trains until each of the iterations, where the run is killed, then to the end."""
    hooks = fields.pop('custom_hooks', [])
    for part, end in enumerate([*ends, None]):
        torch.manual_seed(part)  # the weights that a new process would begin with
        killed = [] if end is None else [At(end, kill)]
        runner = make_runner(
            folder, workers, by_epoch, custom_hooks=[*hooks, *killed], resume=True, **fields
        )
        if end is None:
            runner.train()
            end_workers(runner)
        else:
            with pytest.raises(KilledError):
                runner.train()
    return runner


@pytest.mark.parametrize(
    'workers, by_epoch, fields',
    [
        (0, True, {}),  # a checkpoint at the end of each epoch only
        (0, True, every_iteration()),
        (0, False, dict(custom_hooks=[EMA])),
        (2, True, dict(every_iteration(max_keep_ckpts=1), custom_hooks=[EMA])),
        (2, False, dict(optim_wrapper=ACCUMULATING)),
        (0, True, dict(every_iteration(), optim_wrapper=ACCUMULATING, randomness=dict(seed=None))),
        (0, True, dict(every_iteration(), custom_hooks=[EMA], **FLEXIBLE)),
    ],
    ids=['epochs', 'iterations', 'ema', 'workers', 'accumulating', 'random_seed', 'flexible'],
)
def test_interrupted_run_equals_the_whole_one(tmp_path, workers, by_epoch, fields, monkeypatch):
    if 'randomness' in fields:
        # The seed of the first run is drawn, and so is another one by each process after it.
        seeds = iter([11, 11, 12, 13])
        monkeypatch.setattr('mmengine.runner.utils.sync_random_seed', lambda: next(seeds))
    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', workers, by_epoch, **fields)
    whole.train()
    end_workers(whole)
    parts = run_in_parts(tmp_path / 'parts', [7, 11], workers, by_epoch, **fields)
    assert everything(parts) == everything(whole)


def test_runs_of_the_same_settings_are_apart(tmp_path):
    first, second = (make_runner(tmp_path / name, **FLEXIBLE) for name in ('first', 'second'))
    assert Path(first.log_dir).parent == tmp_path / 'first'
    assert Path(second.log_dir).parent == tmp_path / 'second'
    assert first.message_hub is not second.message_hub


@pytest.mark.parametrize('fields', [{}, FLEXIBLE], ids=['runner', 'flexible'])
@pytest.mark.parametrize(
    'kind', [Visualizer, 'Visualizer', 'DetLocalVisualizer', 'mmseg.SegLocalVisualizer']
)
def test_runs_of_one_process_write_into_their_own_folders(tmp_path, kind, fields):
    visualizer = dict(type=kind, vis_backends=[dict(type='LocalVisBackend')], name=uuid.uuid4().hex)
    for name in ('first', 'second', 'third'):
        runner = make_runner(
            tmp_path / name, visualizer=visualizer, default_scope='mmdet', **fields
        )
        runner.train()
        end_workers(runner)
        assert Visualizer.get_current_instance() is runner.visualizer
        (scalars,) = tmp_path.glob(f'{name}/*/vis_data/scalars.json')
        assert len(scalars.read_text().splitlines()) == 2 * EPOCHS  # with validations
        shutil.rmtree(tmp_path / name)  # which no later run misses
    assert runner.visualizer.instance_name.startswith(visualizer['name'])


def test_validation_does_not_depend_on_what_else_draws(tmp_path):
    scores = []
    for number, hooks in enumerate(([], [At(3, lambda runner: random.random())])):
        torch.manual_seed(0)
        runner = make_runner(tmp_path / str(number), custom_hooks=hooks)
        runner.train()
        scores.append(everything(runner))
    assert scores[0] == scores[1]


def test_number_of_workers_does_not_matter(tmp_path):
    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', workers=2, **every_iteration())
    whole.train()
    end_workers(whole)
    torch.manual_seed(0)
    runner = make_runner(tmp_path, custom_hooks=[At(7, kill)], **every_iteration())
    with pytest.raises(KilledError):
        runner.train()
    runner = make_runner(tmp_path, workers=2, resume=True, **every_iteration())
    runner.train()
    end_workers(runner)
    assert everything(runner) == everything(whole)


def test_validation_that_was_missed_is_made_up_for(tmp_path, monkeypatch):
    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole')
    whole.train()
    torch.manual_seed(0)
    runner = make_runner(tmp_path / 'parts')
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(
            DurableCheckpointHook, 'after_val_epoch', lambda hook, runner, metrics: kill(runner)
        )
        runner.train()
    runner = make_runner(tmp_path / 'parts', resume=True)
    runner.train()
    assert everything(runner) == everything(whole)


def test_run_with_nothing_to_resume_starts_from_the_weights_of_the_config(tmp_path):
    torch.save(Net().state_dict(), tmp_path / 'start.pth')
    fields = dict(
        resume='auto',
        load_from=str(tmp_path / 'start.pth'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    runner = make_runner(tmp_path / 'run', **fields)
    runner.train()
    start = torch.load(fields['load_from'])
    trained = dict(runner.model.named_parameters())
    assert all(torch.equal(value, start[name]) for name, value in trained.items())
    runner = make_runner(tmp_path / 'run', **fields)
    runner.train()
    assert Path(runner._load_from).parent == tmp_path / 'run'


def test_checkpoint_of_mmengine_goes_on_in_its_epoch(tmp_path):
    runner = make_runner(tmp_path, custom_hooks=[At(7, kill)], **every_iteration())
    with pytest.raises(KilledError):
        runner.train()
    path = tmp_path / 'iter_7.pth'
    content = torch.load(path, weights_only=False)
    del content[KEY]
    torch.save(content, path)
    seen = []
    runner = make_runner(
        tmp_path, resume=True, custom_hooks=[At(8, lambda r: seen.append(r.epoch))]
    )
    runner.train()
    assert runner.iter == 18 and seen == [1]


def train_two(rank: int, folder: Path, port: int) -> None:
    """One of two processes, each of which takes half of a batch."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    os.chdir(folder)  # mmengine collects results there
    distributed.init_process_group('gloo')
    fields = dict(
        every_iteration(max_keep_ckpts=1),
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)),
        optim_wrapper=ACCUMULATING,
    )
    losses = []
    note = At(
        1, lambda runner: losses.append(runner.message_hub.get_scalar('train/loss').current())
    )
    torch.manual_seed(0)
    whole = make_runner(folder / 'whole', custom_hooks=[note], **fields)
    whole.train()
    torch.manual_seed(0)
    signal = At(5, lambda runner: rank and os.kill(os.getpid(), SIGTERM))
    signal.priority = 'NORMAL'
    with pytest.raises(SystemExit):  # both end, though one has received it
        make_runner(folder / 'parts', custom_hooks=[signal], **fields).train()
    parts = run_in_parts(folder / 'parts', [7], **fields)
    assert everything(parts) == everything(whole)
    both: list = [None, None]
    distributed.all_gather_object(both, float(losses[0]))
    assert both[0] == both[1]  # the mean
    assert get_rank() == rank
    statistics = [None, None]
    distributed.all_gather_object(statistics, whole.model.module.body[1].running_mean.tolist())
    assert statistics[0] != statistics[1]  # so that restoring them was tested
    distributed.barrier()
    os._exit(0)  # threads of gloo may abort


def test_two_processes(tmp_path):
    # In an interpreter of its own: autograd's threads and fork exclude each other.
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', __file__, tmp_path],
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(Path(__file__).parents[2])),
    )
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(model=dict(width=5)), r'body.0.weight is \(4, 3\) in the checkpoint and \(5, 3\)'),
        (dict(model=dict(frozen=True)), 'frozen now and trained in the checkpoint: body.0.weight'),
        (dict(optimizer=dict(type='Adam', lr=0.01)), 'the optimizer is AdamW in the checkpoint'),
        (dict(paramwise=True), 'AdamW has 1 groups of parameters'),
        (dict(param_scheduler=[]), 'has 1 parameter schedulers and the run 0'),
    ],
    ids=['shape', 'frozen', 'optimizer', 'groups', 'schedulers'],
)
def test_what_does_not_fit_is_one_line_before_anything_is_loaded(tmp_path, change, said):
    runner = make_runner(tmp_path)
    runner.train()
    net = Net(width=change.get('model', {}).get('width', 4))
    net.body[0].requires_grad_(not change.get('model', {}).get('frozen', False))
    wrapper = dict(optimizer=change.get('optimizer', dict(type='AdamW', lr=0.01, weight_decay=0.1)))
    if change.get('paramwise'):
        wrapper['paramwise_cfg'] = dict(norm_decay_mult=0.0)
    fields = {key: change[key] for key in ('param_scheduler',) if key in change}
    runner = make_runner(tmp_path, model=net, optim_wrapper=wrapper, resume=True, **fields)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=f'epoch_3.pth does not fit .*{said}.*load_from='):
        runner.train()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_average_cannot_be_left_out(tmp_path):
    make_runner(tmp_path, custom_hooks=[EMA]).train()
    with pytest.raises(CheckpointError, match=r'average .* EMAHook.*load_from='):
        make_runner(tmp_path, resume=True).train()


def test_scale_of_gradients_goes_on(tmp_path):
    def wrapper():
        net = Net()
        return dict(
            model=net, optim_wrapper=Scaled(optimizer=torch.optim.SGD(net.parameters(), 0.1))
        )

    torch.manual_seed(0)
    whole = make_runner(tmp_path / 'whole', **every_iteration(), **wrapper())
    whole.train()
    torch.manual_seed(0)
    runner = make_runner(
        tmp_path / 'parts', custom_hooks=[At(7, kill)], **every_iteration(), **wrapper()
    )
    with pytest.raises(KilledError):
        runner.train()
    parts = make_runner(tmp_path / 'parts', resume=True, **every_iteration(), **wrapper())
    parts.train()
    assert everything(parts) == everything(whole)
    scale = parts.optim_wrapper.loss_scaler.state_dict()
    assert scale['scale'] == 32.0 and scale['_growth_tracker'] == 3


def test_settings_that_differ_are_named(tmp_path):
    from mmengine.config import Config

    from focal_mm.engine.fit import _compare_configs

    old = Config(dict(model=dict(head=dict(num_classes=80), depths=(2, 2)), lr=1))
    new = Config(dict(model=dict(head=dict(num_classes=4), depths=(2, 2)), lr=2))
    changes = list(_compare_configs(old.pretty_text, new))
    assert changes == ['model.head.num_classes was 80 and is 4']
    with_dots = Config(dict(model=dict(keys={'a.b': dict(x=1)})))
    assert not list(_compare_configs(with_dots.pretty_text, with_dots))
    other = Config(dict(model=dict(keys={'a.b': dict(x=2)})))
    assert list(_compare_configs(with_dots.pretty_text, other)) == [
        'model.keys.a.b.x was 1 and is 2'
    ]
    assert not list(_compare_configs('model = __import__("os").getcwd()', new))


def test_fused_is_what_the_config_says(tmp_path):
    fused = dict(optimizer=dict(type='AdamW', lr=0.01, fused=True))
    make_runner(tmp_path, optim_wrapper=fused).train()
    runner = make_runner(tmp_path, resume=True, train_cfg=dict(by_epoch=True, max_epochs=4))
    runner.train()
    assert not runner.optim_wrapper.param_groups[0]['fused']


if __name__ == '__main__':
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    arguments = (Path(sys.argv[1]), port)
    multiprocessing.start_processes(train_two, arguments, nprocs=2, start_method='fork')
