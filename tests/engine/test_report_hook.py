import json
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.runner import get_priority
from tiny_run import At, KilledError, kill, make_runner

from focal_mm.engine import ReportHook
from focal_mm.report import read_run

pytestmark = pytest.mark.stock
HOOK = dict(type='focal_mm.ReportHook')


def test_a_run_ends_with_a_page_and_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.orig_argv', ['/bin/python3', 'train.py', 'a b.py', '--amp'])
    make_runner(tmp_path, custom_hooks=[HOOK]).train()
    assert 'acc' in (tmp_path / 'report.html').read_text()
    run = read_run(tmp_path)
    command = f"cd {shlex.quote(str(Path.cwd()))}\npython3 train.py 'a b.py' --amp"
    assert run['repeat']['command'] == command
    assert '--cfg-options randomness.seed=1' in run['repeat']['source']  # no config to have it
    assert run['seed'] == '1' and run['versions'].keys() >= {'Python', 'torch', 'focal_mm'}
    assert [one['metrics'].keys() for one in run['validations']] == [{'acc'}] * 3
    assert [(one['epoch'], one['iter']) for one in run['validations']] == [(1, 6), (2, 12), (3, 18)]


def test_difference_to_the_base_is_noted(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        "_base_ = 'mmdet::_base_/default_runtime.py'\n"
        'default_hooks = dict(logger=dict(interval=7))\n'
    )
    cfg = Config.fromfile(file)
    runner = make_runner(tmp_path / 'work', custom_hooks=[HOOK], cfg=cfg)
    runner.train()
    config = read_run(tmp_path / 'work')['config']
    assert config['base'] == 'what mine.py inherits: mmdet::_base_/default_runtime.py'
    assert config['changes'] == [['default_hooks.logger.interval', '50', '7']]


def test_a_killed_run_has_what_was_noted_until_then(tmp_path):
    with pytest.raises(KilledError):
        make_runner(tmp_path, custom_hooks=[HOOK, At(13, kill)]).train()
    assert not (tmp_path / 'report.html').exists()
    assert [one['iter'] for one in read_run(tmp_path)['validations']] == [6, 12]


def test_no_error_of_the_report_ends_a_run(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError('no report')

    for name in ('start_record', 'write_json', 'write_report'):
        monkeypatch.setattr(f'focal_mm.engine.report_hook.{name}', fail)
    runner = make_runner(tmp_path, custom_hooks=[HOOK], log_level='WARNING')
    runner.train()
    assert runner.iter == 18
    log = next(tmp_path.glob('*/*.log')).read_text()
    for what in ('how the run was started', 'the details of a validation', 'the report'):
        assert f"report: no {what}: RuntimeError('no report')" in log


def test_only_the_newest_validation_keeps_its_pictures(tmp_path):
    for step in (1, 2, 3):
        found = dict(worst=[step], curves=[], by_class={})
        ReportHook._write(tmp_path, dict(epoch=step, iter=step), found, dict(acc=0.5, table=[1]))
    contents = [json.loads((tmp_path / f'val_{i}.json').read_text()) for i in (1, 2, 3)]
    assert ['worst' in content for content in contents] == [False, False, True]
    assert contents[0]['metrics'] == dict(acc=0.5)


def test_it_is_on_in_our_configs_and_comes_after_the_log():
    for name in ('mask_rcnn/focalnet_t_1x.py', 'upernet/focalnet_t.py', 'imagenet/focalnet_t.py'):
        assert HOOK in Config.fromfile(f'focal_mm::{name}').custom_hooks
    assert get_priority(ReportHook.priority) > get_priority(LoggerHook.priority)
