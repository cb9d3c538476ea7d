import pytest

from focal_mm.cli.runner import load_config
from focal_mm.cli.training import resume

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'


@pytest.fixture
def cfg(tmp_path):
    return load_config(CONFIG, str(tmp_path), options=dict(load_from='start.pth'))


def test_run_without_checkpoints_starts_from_the_weights_of_the_config(cfg, capsys):
    resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (False, 'start.pth')
    assert f'no checkpoint in {cfg.work_dir}' in capsys.readouterr().out


def test_last_checkpoint_is_resumed(cfg, tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))


def test_work_folder_may_have_been_moved(cfg, tmp_path):
    (tmp_path / 'epoch_1.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')


def test_named_checkpoint_is_resumed(cfg, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    resume(cfg, '~/epoch_2.pth')
    assert (cfg.resume, cfg.load_from) == (True, '/home/me/epoch_2.pth')
