import json
import os
import time

import pytest
import torch
from mmengine.registry import MODELS, VISUALIZERS, init_default_scope

from focal_mm.cli.runner import load_config
from focal_mm.report import read_run

pytestmark = pytest.mark.stock


@pytest.fixture
def work_dir(tmp_path):
    start = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    start.mkdir(parents=True)
    lines = [dict(loss=2.0, lr=0.1, time=0.5, data_time=0.1, epoch=1, iter=9, step=9)]
    (start / 'scalars.json').write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    return tmp_path / 'run'


def test_page_is_in_the_folder_or_where_it_is_wanted(command, work_dir, tmp_path):
    status, out, _ = command('report', work_dir)
    assert status == 0 and out.splitlines()[-1] == str(work_dir / 'report.html')
    assert f'{work_dir}: going on, ' in out and '--evaluate' in out
    status, out, _ = command('report', work_dir, work_dir, '--out', tmp_path / 'new' / 'both.html')
    assert status == 0 and (tmp_path / 'new' / 'both.html').is_file()


@pytest.mark.parametrize(
    'words, message',
    [
        (['absent'], 'absent: no such folder'),
        (['.'], 'no run in this folder'),
        (['{run}', '--evaluate'], 'no config in this folder'),
        (['{run}', '--evaluate', 'epoch_9.pth'], '--evaluate epoch_9.pth: no such file'),
        (['{run}', '--cfg-options', 'a=1'], '--cfg-options changes only what --evaluate builds'),
        (['{run}', '--watch', '0'], '--watch 0'),
        (['{run}', '--base', 'absent.py'], '--base absent.py'),
        (['{run}', '--out', '{run}'], 'is a folder'),
        (['{run}'] * 9, '9 folders'),
    ],
)
def test_mistakes_are_one_line(command, work_dir, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (work_dir / 'epoch_1.pth').write_bytes(b'')
    if words[-1] == '--evaluate':
        torch.save(dict(state_dict={}, meta=dict(iter=1, epoch=1)), work_dir / 'epoch_1.pth')
    status, _, error = command('report', *(word.format(run=work_dir) for word in words))
    assert status == 2 and message in error and len(error.splitlines()) == 1


def test_watching_ends_with_the_run(command, work_dir, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        assert 'every 7 s' in (work_dir / 'report.html').read_text() or len(slept) < 3
        assert '"watch":7' in (work_dir / 'report.html').read_text()
        if len(slept) == 2:
            then = time.time() - 3600
            for file in work_dir.rglob('*'):
                os.utime(file, (then, then))

    monkeypatch.setattr('focal_mm.cli.report.time.sleep', sleep)
    status, out, _ = command('report', work_dir, '--watch', '7')
    assert status == 0 and slept == [7, 7]
    assert [line.split(', ')[0].split()[-1] for line in out.splitlines()[:3]] == [
        'on',
        'on',
        'stopped',
    ]
    assert '"watch":null' in (work_dir / 'report.html').read_text()


KINDS = dict(
    detector=('objects', 'bbox AP', 'coco/bbox_mAP'),
    segmentor=('labels', 'IoU', 'mIoU'),
    classifier=('classes', 'accuracy', 'accuracy/top1'),
)


@pytest.mark.parametrize('kind', KINDS)
def test_checkpoint_is_validated(command, work_dir, tiny_models, kind):
    count = 4
    cfg = load_config(
        str(tiny_models / f'{kind}.py'),
        mini=True,
        options={'val_dataloader.dataset.indices': count},
    )
    cfg.dump(work_dir / 'config.py')
    init_default_scope(cfg.default_scope)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    meta = dict(iter=9, epoch=1)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state, meta=meta), work_dir / 'epoch_1.pth')
    before = {path.name for path in work_dir.iterdir()}
    with VISUALIZERS.switch_scope_and_registry(cfg.default_scope) as registry:
        visualizer = registry.get(cfg.visualizer.type)
    shared = visualizer.check_instance_created('visualizer')
    status, *_ = command('report', work_dir, '--evaluate')
    assert status == 0
    assert visualizer.check_instance_created('visualizer') == shared  # other runs would use it
    assert {path.name for path in work_dir.iterdir()} == before | {'report', 'report.html'}
    details = read_run(work_dir)['details']
    details_kind, by_class, metric = KINDS[kind]
    assert details['kind'] == details_kind and details['iter'] == 9
    values = [value for value in details['by_class'][by_class] if value is not None]
    if kind == 'classifier':  # the mean of all pictures, not of the classes
        pictures = details['by_class']['pictures']
        assert sum(pictures) == count
        values = [sum(v * n for v, n in zip(values, filter(None, pictures))) / count]
    assert sum(values) / len(values) == pytest.approx(details['metrics'][metric], abs=0.01)
    assert len(details['worst']) <= count and all(one['photo'] for one in details['worst'])
