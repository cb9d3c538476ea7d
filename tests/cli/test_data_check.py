"""The data is looked at before a training, unless somebody says not to."""

import json
from pathlib import Path

import pytest

from focal_mm.cli import runner
from focal_mm.cli.data_check import require_sound_data

pytestmark = pytest.mark.stock


@pytest.fixture
def config(write_coco, tmp_path) -> Path:
    """A config of four pictures for training and four for validation."""
    for split in ('train', 'val'):
        write_coco(split)
    file = tmp_path / 'own.py'
    file.write_text(
        "_base_ = 'focal_mm::mask_rcnn/focalnet_t_1x.py'\n"
        f"data = dict(data_root={str(tmp_path)!r}, data_prefix=dict(img='my pictures'),\n"
        "            metainfo=dict(classes=('dog', 'кот')))\n"
        'head = dict(num_classes=2)\n'
        'model = dict(roi_head=dict(bbox_head=head, mask_head=head))\n'
        "train_dataloader = dict(dataset=dict(data, ann_file='train.json'))\n"
        "val_dataloader = dict(dataset=dict(data, ann_file='val.json'))\n"
        f'val_evaluator = dict(ann_file={str(tmp_path / "val.json")!r})\n'
        'test_dataloader = val_dataloader\n'
        'test_evaluator = val_evaluator\n'
    )
    return file


def spoil(config, **fields):
    file = config.with_name('train.json')
    content = json.loads(file.read_text())
    for annotation in content['annotations'][:2]:
        annotation.update(fields)
    file.write_text(json.dumps(content))


def test_sound_data_passes_without_a_word(config, capsys):
    cfg = runner.load_config(str(config))
    capsys.readouterr()
    require_sound_data(cfg)
    assert capsys.readouterr().err == ''


def test_warnings_are_printed_and_stop_nothing(config, capsys):
    spoil(config, bbox=[50, 5, 20, 10])
    require_sound_data(runner.load_config(str(config)))
    err = capsys.readouterr().err
    assert 'data: warning: ' in err and 'train.json: 2 x bbox that reaches over the edge' in err


def test_training_on_errors_ends_in_one_line(config, command):
    spoil(config, category_id=99)
    status, _, err = command('train', config)
    assert status == 2
    (line,) = [line for line in err.splitlines() if ': error: ' in line]
    assert 'train.json: 2 x annotation of an unknown category: id 1 (99), id 2 (99)' in line
    assert f'focal-mm doctor --data {config}' in line
    assert '--fix OUT.json' in line and '--skip-data-check' in line


def test_data_check_may_be_skipped(config, command, monkeypatch):
    spoil(config, category_id=99)
    started = []
    monkeypatch.setattr(runner, 'build_runner', lambda cfg: started.append(cfg) or pytest)
    monkeypatch.setattr(pytest, 'train', lambda: None, raising=False)
    status, _, err = command('train', config, '--skip-data-check')
    assert (status, len(started)) == (0, 1), err


def test_only_the_first_of_several_processes_looks(config, monkeypatch):
    spoil(config, category_id=99)
    cfg = runner.load_config(str(config), launcher='pytorch')
    monkeypatch.setenv('RANK', '1')
    require_sound_data(cfg)
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(ValueError, match='unknown category'):
        require_sound_data(cfg)


def test_doctor_writes_a_copy_that_can_be_trained_on(config, command, tmp_path):
    spoil(config, category_id=99)
    before = config.with_name('train.json').read_bytes()
    out = tmp_path / 'clean.json'
    status, text, _ = command('doctor', '--data', config, '--fix', out)
    assert status == 1 and f'{out}: ' in text and 'without 2 records' in text
    left_out = json.loads((tmp_path / 'clean.left_out.json').read_text())
    assert [record['id'] for record in left_out['annotations']] == [1, 2]
    assert config.with_name('train.json').read_bytes() == before
    option = f'train_dataloader.dataset.ann_file={out}'
    status, text, _ = command('doctor', '--data', config, '--json', '--cfg-options', option)
    found = json.loads(text)['findings']
    assert status == 0 and all(finding['level'] == 'note' for finding in found)
    status, _, err = command('doctor', '--data', config, '--fix', out)
    assert status == 2 and 'exists' in err
    assert command('doctor', '--fix', out)[0] == 2
