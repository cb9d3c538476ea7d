"""Mistakes on the command line end in one line and exit status 2."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.stock

CONFIG = 'configs/mask_rcnn/focalnet_t_1x.py'


@pytest.fixture
def mistake(monkeypatch, capsys):
    """Runs a tool that must fail; returns the one line that it leaves on stderr."""

    def run(name, *args):
        monkeypatch.chdir(Path(__file__).parents[2])
        monkeypatch.setattr('sys.argv', [f'tools/{name}', *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(f'tools/{name}', run_name='__main__')
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('focal-mm') and ': error: ' in line
        return line

    return run


def test_missing_data_names_the_file_and_both_ways_out(mistake, tmp_path):
    line = mistake('train.py', CONFIG, '--cfg-options', f'data_root={tmp_path}/nowhere')
    assert f'{tmp_path}/nowhere' in line
    assert '--mini' in line and '--cfg-options data_root=DIR' in line


def test_missing_weights_name_the_way_to_do_without(mistake, tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    line = mistake(
        'train.py',
        CONFIG,
        '--mini',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=focal://focalnet_tiny_lrf_in1k',
    )
    assert 'focalnet_tiny_lrf.pth' in line and '--from-scratch' in line


def test_unknown_arch_names_the_near_ones(mistake, tmp_path):
    line = mistake(
        'train.py',
        CONFIG,
        '--mini',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.backbone.arch=tiny_lfr',
    )
    assert 'tiny_lfr' in line and 'tiny_lrf' in line


def test_unknown_config_names_the_near_ones(mistake):
    line = mistake('train.py', 'configs/mask_rcnn/focalnet_t1x.py')
    assert 'focalnet_t1x.py' in line and 'focalnet_t_1x.py' in line


def test_unknown_config_of_a_package(mistake):
    assert 'focalnet_t1x' in mistake('train.py', 'focal_mm::mask_rcnn/focalnet_t1x.py')
    assert 'nothing.py' in mistake('train.py', 'mmdet::mask_rcnn/nothing.py')


def test_missing_checkpoint(mistake):
    assert 'nowhere.pth' in mistake('test.py', CONFIG, 'nowhere.pth', '--mini')
    assert 'nowhere.pth' in mistake('train.py', CONFIG, '--mini', '--resume', 'nowhere.pth')


def test_truncated_checkpoint(mistake, tmp_path):
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 and no more')
    assert 'cut.pth' in mistake(
        'test.py', CONFIG, tmp_path / 'cut.pth', '--mini', '--work-dir', tmp_path
    )


@pytest.mark.parametrize(
    'tool, words',
    [
        ('train.py', [CONFIG, '--epochs']),
        ('demo.py', ['--epochs']),
        ('weights.py', ['gte']),
        ('convert_weights.py', ['in.pth', 'out.pth', 'more.pth']),
    ],
)
def test_unknown_words(mistake, tool, words):
    assert words[-1] in mistake(tool, *words)


@pytest.mark.parametrize(
    'option',
    ['data_root', 'train_dataloader.batch_size.x=1', 'train_dataloader.dataset.pipeline.9.x=1'],
)
def test_options_that_do_not_fit(mistake, option):
    assert '--cfg-options' in mistake('train.py', CONFIG, '--cfg-options', option)


def test_predictions_of_a_detector_need_a_pickle_file(mistake, tmp_path):
    (tmp_path / 'some.pth').touch()
    line = mistake('test.py', CONFIG, tmp_path / 'some.pth', '--mini', '--out', 'found.json')
    assert 'found.json' in line and '.pkl' in line


def test_no_batch_size_to_scale_from(mistake):
    config = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    assert 'base_batch_size' in mistake('train.py', config, '--mini', '--auto-scale-lr')
