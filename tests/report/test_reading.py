import json
import os
import time

import pytest
from tiny_run import At, KilledError, kill, make_runner

from focal_mm.engine.lock import held
from focal_mm.report import read_run

pytestmark = pytest.mark.stock


def scalars_of(work_dir):
    return [
        json.loads(line)
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    hooks = dict(logger=dict(type='LoggerHook', interval=2))
    make_runner(work_dir, default_hooks=hooks, log_level='INFO').train()
    return work_dir


def test_curves_are_what_was_logged(trained):
    run = read_run(trained)
    lines = [line for line in scalars_of(trained) if 'iter' in line]
    assert len(lines) == 9
    for key in ('loss', 'lr', 'time', 'data_time'):
        expected = [[line['step'], pytest.approx(line[key], rel=1e-5)] for line in lines]
        assert run['train'][key] == expected
    scores = [line['acc'] for line in scalars_of(trained) if 'acc' in line]
    assert run['val']['acc'] == [[i, pytest.approx(s, rel=1e-5)] for i, s in enumerate(scores, 1)]


def test_environment_and_seed_are_read_from_the_log(trained):
    run = read_run(trained)
    assert run['seed'] == '1'
    assert {'Python', 'PyTorch', 'GPU number'} <= run['environment'].keys()
    assert run['git'] is None and run['versions'] is None  # nobody noted them
    assert run['details'] is None and run['validations'] == []


def test_a_run_that_was_killed_and_resumed_is_one_run(tmp_path):
    with pytest.raises(KilledError):
        make_runner(tmp_path, custom_hooks=[At(11, kill)], default_hooks=LOGGER).train()
    time.sleep(1)  # the folder of a start is named by the second
    make_runner(tmp_path, default_hooks=LOGGER, resume=True).train()
    run = read_run(tmp_path)
    steps = [step for step, _ in run['train']['loss']]
    assert steps == list(range(1, 19))
    assert [step for step, _ in run['val']['acc']] == [1, 2, 3]
    assert len(run['starts']) == 2 and run['starts'][1].startswith('went on')


LOGGER = dict(
    logger=dict(type='LoggerHook', interval=1), checkpoint=dict(type='CheckpointHook', interval=1)
)


def test_of_two_starts_the_later_counts_from_its_first_line_on(write_start, train_line):
    write_start([train_line(s) for s in (4, 8)] + [dict(acc=1.0, step=1)] + [train_line(12)])
    folder = write_start([train_line(s, 2.0) for s in (12, 16)], '20260101_000001')
    run = read_run(folder)
    assert run['train']['loss'] == [[4, 1], [8, 1], [12, 2], [16, 2]]
    assert run['val']['acc'] == [[1, 1]]
    folder = write_start([train_line(4, 3.0)], '20260101_000002')
    run = read_run(folder)
    assert run['train']['loss'] == [[4, 3]] and 'acc' not in run['val']
    assert 'began anew' in run['starts'][-1]


def age(folder, seconds):
    then = time.time() - seconds
    for file in folder.rglob('*'):
        os.utime(file, (then, then))


@pytest.mark.parametrize(
    'val, checkpoint, silent, expected',
    [
        (1, '', 0, 'going on'),
        (1, '', 3600, 'stopped'),
        (1, 'epoch_2.pth', 3600, 'stopped'),
        (1, 'epoch_3.pth', 3600, 'finished'),
        (3, '', 0, 'finished'),
        (1, 'iter_3.pth', 3600, 'stopped'),
    ],
)
def test_state(write_start, train_line, val, checkpoint, silent, expected):
    folder = write_start([train_line(10), dict(acc=0.5, step=val)])
    if checkpoint:
        (folder / 'last_checkpoint').write_text(f'/elsewhere/{checkpoint}')
    age(folder, silent)
    state = read_run(folder)['state']
    assert state['kind'] == expected and state['checkpoint'] == (checkpoint or None)


def test_checkpoint_of_an_earlier_run_does_not_end_a_new_one(write_start, train_line):
    folder = write_start([train_line(4)])
    (folder / 'last_checkpoint').write_text('epoch_3.pth')
    os.utime(folder / 'last_checkpoint', (1e9, 1e9))
    assert read_run(folder)['state']['kind'] == 'going on'


@pytest.mark.skipif(os.name != 'posix', reason='its files have no locks')
def test_run_of_our_runner_goes_on_while_it_holds_its_folder(write_start, train_line):
    config = "train_cfg = dict(max_epochs=3)\nrunner_type = 'focal_mm.DurableRunner'\n"
    folder = write_start([train_line(4)], config=config)
    assert read_run(folder)['state']['kind'] == 'stopped'
    with held(str(folder)):
        assert read_run(folder)['state']['kind'] == 'going on'


def test_broken_lines_are_left_out_and_said(write_start, train_line):
    broken = ['{"loss": 1.0, "st', '[1]', 'null', '{"loss": 2.0}', '{"step": "x"}', '[' * 99999]
    run = read_run(write_start([train_line(1), *broken, train_line(2)]))
    assert run['train']['loss'] == [[1, 1], [2, 1]]
    assert '6 broken lines left out (2, 3, 4, 5, 6, …)' in run['notes'][0]


def test_losses_that_are_not_finite_stay_visible(write_start, train_line):
    lines = [train_line(1), train_line(2, float('nan')), train_line(3, float('-inf'))]
    run = read_run(write_start(lines))
    assert run['train']['loss'] == [[1, 1], [2, 'nan'], [3, '-inf']]
    assert run['notes'] == ['loss is not finite in 2 lines, first at 2']


def test_long_curves_keep_their_ends_and_their_faults(write_start, train_line):
    losses = [float('nan') if step == 5000 else 1.0 for step in range(1, 9002)]
    run = read_run(write_start([train_line(i, loss) for i, loss in enumerate(losses, 1)]))
    curve = run['train']['loss']
    assert 3000 <= len(curve) <= 4001
    assert curve[-1] == [9001, 1] and [5000, 'nan'] in curve
    assert curve == sorted(curve, key=lambda point: point[0])


def test_speed_is_of_the_median_and_counts_all_processes(write_start, train_line):
    folder = write_start([train_line(s, memory=100 + s) for s in (1, 2, 3)])
    (folder / '20260101_000000' / '20260101_000000.log').write_text(
        f'System environment:\n    GPU number: 2\n{"-" * 60}\n'
    )
    assert read_run(folder)['speed'] == dict(
        data=0.125, iteration=0.5, share=0.25, pictures=16, memory=103
    )


def test_folder_without_a_run_is_an_error_that_names_those_below(write_start, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'):
        read_run(tmp_path / 'absent')
    with pytest.raises(FileNotFoundError, match='no run in this folder'):
        read_run(tmp_path)
    folder = write_start([])
    with pytest.raises(FileNotFoundError, match=f'there are runs in {folder}'):
        read_run(tmp_path)


def test_run_that_died_before_its_first_line(write_start):
    run = read_run(write_start([]))
    assert run['train'] == run['val'] == run['speed'] == {}
    assert run['state']['iter'] == 0


def test_config_that_would_have_to_be_run_is_shown_and_not_run(write_start, train_line, tmp_path):
    code = f"open({str(tmp_path / 'owned')!r}, 'w')\n"
    run = read_run(write_start([train_line(1)], config=code))
    assert run['config']['text'] == code and run['config']['changes'] is None
    assert 'line 1 is more than an assignment' in run['notes'][0]
    assert not (tmp_path / 'owned').exists()


def test_base_is_compared_and_a_bad_one_named(write_start, train_line, tmp_path):
    base = tmp_path / 'base.py'
    base.write_text("model = dict(type='MaskRCNN', backbone=dict(type='Swin'))\n")
    folder = write_start([train_line(1)])
    config = read_run(folder, str(base))['config']
    assert ['model.backbone.type', "'Swin'", "'ResNet'"] in config['changes']
    assert ['train_dataloader', '–', 'dict(batch_size=4)'] in config['changes']
    with pytest.raises(ValueError, match='--base absent.py'):
        read_run(folder, 'absent.py')


def test_command_is_made_from_the_config_where_none_was_noted(write_start, train_line):
    folder = write_start([train_line(1)])
    command = read_run(folder)['repeat']['command']
    assert command == f'focal-mm train {folder}/config.py --work-dir {folder}-again'


@pytest.mark.parametrize('value', ['3', '"x"', '[1]', 'None', 'dict(max_epochs=[], max_iters="y")'])
def test_strange_configs_are_no_errors(write_start, train_line, value):
    names = ('train_cfg', 'train_dataloader', 'randomness')
    folder = write_start([train_line(1)], config=''.join(f'{n} = {value}\n' for n in names))
    record = dict(changes=[], processes=value)
    (folder / '20260101_000000' / 'report').mkdir()
    (folder / '20260101_000000' / 'report' / 'run.json').write_text(json.dumps(record))
    run = read_run(folder)
    assert run['state']['kind'] == 'going on' and run['config']['changes'] == []
