import pytest
from mmengine.config import Config

from focal_mm.cli import reproduce, tables

pytestmark = pytest.mark.stock


@pytest.fixture
def row():
    return next(row for row in tables.load_rows() if row.config == 'upernet/focalnet_t')


def tools(steps):
    return [
        next(part for part in step.command if part.endswith('.py')).rsplit('/')[-1]
        for step in steps
    ]


def test_row_with_several_scales_is_tested_twice(row, tmp_path):
    steps = reproduce.plan(row, tmp_path)
    assert tools(steps) == ['train.py', 'test.py', 'test.py']
    assert ['--tta' in step.command for step in steps] == [False, False, True]
    assert str(tmp_path / 'iter_160000.pth') in steps[1].command
    assert not any(step.done for step in steps)


def test_completed_steps_are_not_repeated(row, tmp_path):
    (tmp_path / 'iter_160000.pth').touch()
    assert [step.done for step in reproduce.plan(row, tmp_path)] == [True, False, False]
    (tmp_path / '1').mkdir()
    (tmp_path / '1' / 'test.json').write_text('{"mIoU": 46.8}')
    assert [step.done for step in reproduce.plan(row, tmp_path)] == [True, True, False]


def test_options_reach_the_tools_and_the_plan(row, tmp_path):
    options = ['--mini', '--cfg-options', 'train_cfg.max_iters=8']
    train, test, _ = reproduce.plan(row, tmp_path, options=options)
    assert train.command[-3:] == options
    assert str(tmp_path / 'iter_8.pth') in test.command


@pytest.mark.parametrize(
    'launcher, start',
    [
        ('pytorch', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=4']),
        ('slurm', ['srun', '--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4']),
    ],
)
def test_launchers_start_a_process_a_gpu(row, tmp_path, launcher, start):
    command = reproduce.plan(row, tmp_path, launcher, gpus=4)[0].command
    first = command.index(start[0])
    assert command[first : first + len(start)] == start
    assert command[command.index('--launcher') + 1] == launcher


def test_missing_data_and_weights_are_named(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = reproduce.load_row_config(row, tmp_path)
    with pytest.raises(FileNotFoundError, match='data/ade/ADEChallengeData2016'):
        reproduce.require_resources(row, cfg)
    cfg = reproduce.load_row_config(row, tmp_path, ['--mini'])
    reproduce.require_resources(row, cfg)
    cfg.model.backbone.init_cfg = dict(checkpoint='focal://focalnet_tiny_lrf_deep_in1k')
    with pytest.raises(Exception, match='focalnet_tiny_lrf_deep_in1k.*never published'):
        reproduce.require_resources(row, cfg)


def test_part_of_the_data_reaches_the_tools_and_marks_the_table(row, tmp_path):
    train, test, _ = reproduce.plan(row, tmp_path, options=['--data', '10pct'])
    assert train.command[-2:] == ['--data', '10pct']
    assert str(tmp_path / 'iter_16000.pth') in test.command
    marked = reproduce.mark_part(row, '10pct')
    page = tables.render({marked: tables.Cost(1, 1, 0)}, {marked: dict(mIoU=30.0)})
    assert page.startswith(f'## {row.table}, trained on 10 % of the training images\n')
    assert 'our results are from 10 % of the training images' in page.splitlines()[-1]


def test_too_little_memory_is_said_before_the_run(row, tmp_path):
    cfg = reproduce.load_row_config(row, tmp_path, ['--mini'])
    with pytest.raises(ValueError, match='upernet/focalnet_t: 4 images need at least 3 GiB, and'):
        reproduce.require_resources(row, cfg, memory=2**30 // 4)
    reproduce.require_resources(row, cfg, memory=2**40)


def test_memory_grows_with_the_batch_by_what_the_backbone_keeps():
    cfg = Config.fromfile('focal_mm::mask_rcnn/focalnet_t_1x.py')
    cfg.optim_wrapper.type = 'OptimWrapper'
    two = reproduce.estimate_training_memory(cfg)
    cfg.train_dataloader.batch_size = 4
    four = reproduce.estimate_training_memory(cfg)
    weights = 4 * 4 * 49.43e6
    assert four - weights == pytest.approx(2 * (two - weights), rel=0.02)


def test_failing_command_is_an_error_and_ends_the_run(tmp_path):
    steps = [
        reproduce.Step(['touch', str(tmp_path / 'done')], True),
        reproduce.Step(['false'], False),
        reproduce.Step(['touch', str(tmp_path / 'later')], False),
    ]
    with pytest.raises(ValueError, match='^false failed; '):
        reproduce.run_steps(steps)
    assert not list(tmp_path.iterdir())
