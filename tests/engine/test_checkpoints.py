"""There is a whole checkpoint at any time, and it is found."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch
from mmengine.hooks import CheckpointHook
from tiny_run import At, KilledError, kill, make_runner

from focal_mm.engine import NoSpaceError, checkpoints, find_newest, lock, write_whole
from focal_mm.weights import CheckpointError

pytestmark = pytest.mark.stock


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth*'))


def keep_one(**fields):
    hook = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='acc', **fields)
    return dict(default_hooks=dict(checkpoint=hook))


@pytest.fixture
def trained(tmp_path):
    """The work folder of a run with three checkpoints, and the best."""
    make_runner(tmp_path / 'run').train()
    return tmp_path / 'run'


def fail_at_epoch(monkeypatch, epoch, error):
    """Lets writing fail after the bytes were written, before they are in place."""
    sync = os.fsync

    def fail(descriptor):
        if f'epoch_{epoch}.pth' in os.readlink(f'/proc/self/fd/{descriptor}'):
            raise error
        sync(descriptor)

    monkeypatch.setattr(checkpoints.os, 'fsync', fail)


def test_the_last_one_stays_until_the_next_is_whole(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        fail_at_epoch(patch, 2, KilledError())
        make_runner(tmp_path, **keep_one()).train()
    assert names(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth.part']
    runner = make_runner(tmp_path, resume=True, **keep_one())
    runner.train()
    assert runner.iter == 18
    assert [name for name in names(tmp_path) if 'best' not in name] == ['epoch_3.pth']
    assert len(names(tmp_path)) == 2
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_3.pth')


def test_best_checkpoint_stays_until_a_better_one_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'mmengine.evaluator.Evaluator.evaluate', lambda self, size: dict(acc=next(scores))
    )
    scores = iter([0.1, 0.3, 0.2])
    make_runner(tmp_path / 'a', **keep_one()).train()
    assert names(tmp_path / 'a') == ['best_acc_epoch_2.pth', 'epoch_3.pth']
    scores = iter([0.1, 0.3, 0.2])
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        fail_at_epoch(patch, '2', KilledError())
        make_runner(tmp_path / 'b', **keep_one()).train()
    assert 'best_acc_epoch_1.pth' in names(tmp_path / 'b')


def test_full_disk_leaves_the_last_one_and_stops(tmp_path, monkeypatch):
    fail_at_epoch(monkeypatch, 2, OSError(errno.ENOSPC, 'full'))
    with pytest.raises(
        NoSpaceError, match=r'epoch_2.pth: it needs .* kB and .* free, so .*missing'
    ):
        make_runner(tmp_path, **keep_one()).train()
    assert names(tmp_path) == ['best_acc_epoch_1.pth', 'epoch_1.pth']
    assert find_newest(tmp_path) == (str(tmp_path / 'epoch_1.pth'), [])


def test_full_disk_does_not_stop_a_run_that_goes_on(tmp_path, monkeypatch):
    fail_at_epoch(monkeypatch, 2, OSError(errno.ENOSPC, 'full'))
    runner = make_runner(tmp_path, **keep_one(on_full_disk='continue'))
    runner.train()
    assert runner.iter == 18
    assert [name for name in names(tmp_path) if 'best' not in name] == ['epoch_3.pth']


def test_other_errors_of_writing_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, '_has_content', lambda path, data: False)
    with pytest.raises(OSError, match='read back differently'):
        write_whole(b'1', tmp_path / 'x')
    assert not list(tmp_path.iterdir())


def test_newest_is_found_whatever_the_folder_says(trained, tmp_path):
    moved = tmp_path / 'moved'
    trained.rename(moved)
    assert find_newest(moved) == (str(moved / 'epoch_3.pth'), [])
    for text in ('', 'nowhere.pth', str(moved / 'epoch_1.pth')):
        (moved / 'last_checkpoint').write_text(text)
        assert find_newest(moved).path == str(moved / 'epoch_3.pth')
    (moved / 'last_checkpoint').unlink()
    (moved / 'epoch_3.pth').rename(moved / 'mine.pth')
    os.utime(moved / 'mine.pth', (0, 0))
    assert find_newest(moved).path == str(moved / 'mine.pth')


def test_broken_ones_are_passed_over_and_named(trained):
    whole = (trained / 'epoch_3.pth').read_bytes()
    (trained / 'epoch_3.pth').write_bytes(whole[: len(whole) // 2])
    damaged = bytearray((trained / 'epoch_2.pth').read_bytes())
    weights = torch.load(trained / 'epoch_2.pth', weights_only=False)['state_dict']
    start = damaged.find(weights['body.0.weight'].numpy().tobytes())
    damaged[start] ^= 1
    (trained / 'epoch_2.pth').write_bytes(damaged)
    (trained / 'zero.pth').write_bytes(b'')
    path, broken = find_newest(trained)
    assert path == str(trained / 'epoch_1.pth')
    assert len(broken) == 3 and 'epoch_2.pth: damaged' in ' '.join(broken)
    runner = make_runner(trained, resume=True)
    runner.train()
    assert runner.iter == 18


def test_without_any_whole_one_a_run_does_not_start_over(trained):
    for path in trained.glob('*.pth'):
        path.write_bytes(b'PK\3\4 cut off')
    with pytest.raises(CheckpointError, match=r'no checkpoint of .* is whole: .*; delete them'):
        make_runner(trained, resume=True).train()


def test_the_best_ones_have_no_optimizer_and_come_last(trained):
    for path in trained.glob('epoch_*.pth'):
        path.unlink()
    assert 'best' in find_newest(trained).path
    assert find_newest(trained / 'vis_data') == (None, [])


def test_moved_folder_still_knows_its_best(trained, tmp_path, monkeypatch):
    best = next(trained.glob('best*'))
    shutil.move(trained, tmp_path / 'moved')
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', lambda *_: dict(acc=100.0))
    four = dict(by_epoch=True, max_epochs=4)
    make_runner(tmp_path / 'moved', resume=True, train_cfg=four).train()
    assert best.name not in names(tmp_path / 'moved')


def test_hook_of_mmengine_is_replaced_and_no_other(tmp_path):
    class Own(CheckpointHook):
        pass

    def kinds(runner):
        return [type(hook).__name__ for hook in runner.hooks]

    assert 'DurableCheckpointHook' in kinds(make_runner(tmp_path))
    own = make_runner(tmp_path, default_hooks=dict(checkpoint=Own(), stop=None))
    assert 'Own' in kinds(own) and 'StopHook' not in kinds(own)


def test_configs_text_is_not_run_on_resuming(trained):
    path = trained / 'epoch_3.pth'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'open({str(trained / "ran")!r}, "w")'
    torch.save(content, path)
    make_runner(trained, resume=True).train()
    assert not (trained / 'ran').exists()


def test_weights_alone_are_nothing_to_resume(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='x.pth: holds weights.*load_from='):
        make_runner(tmp_path, resume=True, load_from=str(tmp_path / 'x.pth')).train()


def test_copied_folder_goes_on_from_its_own(trained, tmp_path):
    copied = shutil.copytree(trained, tmp_path / 'a')
    assert find_newest(copied).path == str(copied / 'epoch_3.pth')
    for path in copied.glob('*.pth'):
        path.unlink()
    assert find_newest(copied).path == str(trained / 'epoch_3.pth')  # as with out_dir
    (copied / 'last_checkpoint').write_text('s3://bucket/epoch_3.pth')
    assert find_newest(copied).path == 's3://bucket/epoch_3.pth'


def test_folder_of_the_config_counts(tmp_path):
    hook = dict(type='CheckpointHook', interval=1, out_dir=str(tmp_path / 'out'))
    fields = dict(default_hooks=dict(checkpoint=hook))
    runner = make_runner(tmp_path / 'run', custom_hooks=[At(7, kill)], **fields)
    with pytest.raises(KilledError):
        runner.train()
    (tmp_path / 'run' / 'last_checkpoint').unlink()
    runner = make_runner(tmp_path / 'run', resume='auto', **fields)
    runner.train()
    assert runner._load_from == str(tmp_path / 'out' / 'run' / 'epoch_1.pth')


def test_best_of_the_rest_is_kept_where_the_best_is_gone(trained, monkeypatch):
    next(trained.glob('best*')).unlink()
    monkeypatch.setattr('mmengine.evaluator.Evaluator.evaluate', lambda *_: dict(acc=-100.0))
    four = dict(by_epoch=True, max_epochs=4)
    make_runner(trained, resume=True, train_cfg=four).train()
    assert any(name.startswith('best_acc') for name in names(trained))


def test_hooks_by_class_and_custom_ones_are_replaced(tmp_path):
    hooks = dict(
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=1)),
        custom_hooks=[dict(type='mmengine.CheckpointHook', interval=1, out_dir=str(tmp_path))],
    )
    kinds = [type(hook).__name__ for hook in make_runner(tmp_path / 'run', **hooks).hooks]
    assert kinds.count('DurableCheckpointHook') == 2 and 'CheckpointHook' not in kinds


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    (tmp_path / 'run').mkdir()
    script = (
        'import fcntl, sys\nfile = open(sys.argv[1], "w")\nfcntl.lockf(file, fcntl.LOCK_EX)\n'
        'file.write("process 7 on node")\nfile.flush()\nprint(flush=True)\ninput()'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', script, tmp_path / 'run' / lock.NAME],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    with pytest.raises(FileExistsError, match='another run writes here .process 7 on node.*work-'):
        make_runner(tmp_path / 'run').train()
    other.communicate(b'\n')
    make_runner(tmp_path / 'run').train()
    assert not (tmp_path / 'run' / lock.NAME).exists()
