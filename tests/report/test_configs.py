import pytest
from mmengine.config import Config

from focal_mm.report.configs import base_of, differences, nearest_config, read_literals

pytestmark = pytest.mark.stock
CONFIGS = [
    'focal_mm::mask_rcnn/focalnet_t_1x.py',
    'focal_mm::upernet/focalnet_t.py',
    'focal_mm::imagenet/focalnet_t.py',
    'focal_mm::dino/focalnet_l_4scale_12e.py',
]


@pytest.mark.parametrize('name', CONFIGS)
def test_what_mmengine_dumps_is_read_without_running_it(name):
    cfg = Config.fromfile(name)
    assert read_literals(cfg.pretty_text) == cfg.to_dict()


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        "a = __import__('os').system('id')",
        'a = print(1)',
        'a = dict(**b)',
        'a = dict(1, 2)',
        'a = [x for x in b]',
        'a = f"{b}"',
        'a.b = 1',
        'a = {**b}',
        'a = b',
        'a = (',
        'a = ' + '(' * 500,
        'a = ' + '-' * 5000 + '1',
        '\0',
        "a = -'b'",
        'a = {[]: 1}',
        'a = dict(1)',
    ],
)
def test_code_is_refused(text):
    with pytest.raises(ValueError, match='line|no config'):
        read_literals(text)


def test_differences_name_the_key_and_both_values():
    old = dict(a=1, b=dict(c=[dict(d=1), dict(e=2)], f=(1, 2)), g=dict(h=1), work_dir='x')
    new = dict(a=1, b=dict(c=[dict(d=1), dict(e=3)], f=[1, 2]), i=None, work_dir='y')
    assert differences(old, new) == [
        ['b.c.1.e', '2', '3'],
        ['i', '–', 'None'],
        ['g', 'dict(h=1)', '–'],
    ]
    assert differences(new, new) == []


def test_base_is_what_a_config_inherits(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text(
        "_base_ = ['mmdet::_base_/default_runtime.py', 'mmdet::_base_/schedules/schedule_1x.py']\n"
        'train_cfg = dict(max_epochs=5)\n'
    )
    name, base = base_of(str(file))
    assert name == (
        'what mine.py inherits: '
        'mmdet::_base_/default_runtime.py, mmdet::_base_/schedules/schedule_1x.py'
    )
    changes = differences(base, Config.fromfile(file)._cfg_dict)
    assert changes == [['train_cfg.max_epochs', '12', '5']]


def test_nearest_of_the_installed_configs_of_a_name():
    cfg = Config.fromfile('focal_mm::atss/focalnet_t_3x.py')
    cfg.train_cfg.max_epochs = 3
    name, changes = nearest_config('focalnet_t_3x.py', cfg.to_dict())
    assert name == 'focal_mm::atss/focalnet_t_3x.py'
    assert changes == [['train_cfg.max_epochs', '36', '3']]
    assert nearest_config('no_such_config.py', {}) is None
