"""convert_weights.py and weights.py; the logic behind them is tested in tests/weights."""

import runpy
from pathlib import Path

import pytest
import torch

from focal_mm.backbones import FocalNet
from focal_mm.weights import ZOO

pytestmark = pytest.mark.stock

TOOLS = Path(__file__).parents[2] / 'tools'
NAME = 'focalnet_tiny_lrf_in1k'


@pytest.fixture
def tool(monkeypatch, capsys):
    """Runs a tool; returns its exit status, its lines on stdout and those on stderr."""

    def run(name, *args):
        monkeypatch.setattr('sys.argv', [name, *map(str, args)])
        status = 0
        try:
            runpy.run_path(str(TOOLS / name), run_name='__main__')
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where weights are looked for; nothing is downloaded."""
    folder = tmp_path / 'weights'
    folder.mkdir()
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(folder))
    return folder


@pytest.fixture
def official(tmp_path):
    path = tmp_path / 'x.pth'
    net = FocalNet(arch=dict(embed_dims=8, depths=(1, 1)), out_norm=False)
    torch.save({'model': net.state_dict()}, path)
    return path


# ---- convert_weights.py ------------------------------------------------------------------------


def test_converting_says_what_it_found(tool, official, tmp_path):
    status, (line,), _ = tool('convert_weights.py', official, tmp_path / 'y.safetensors')
    count = len(torch.load(official)['model'])
    assert status == 0
    assert line == f'{official}: official FocalNet, {count} tensors -> {tmp_path}/y.safetensors'


@pytest.mark.parametrize(
    'source, target, words',
    [
        ('absent.pth', 'y.pth', 'absent.pth: no such checkpoint'),
        ('x.pth', 'x.pth', 'x.pth exists'),
        ('x.pth', 'y.txt', 'y.txt: the new file is to end in'),
        ('x.pth', 'x.pth/y.pth', 'y.pth: cannot be written'),
    ],
)
def test_mistakes_in_converting_get_one_line(tool, official, tmp_path, source, target, words):
    status, _, (line,) = tool('convert_weights.py', tmp_path / source, tmp_path / target)
    assert status == 2 and words in line


# ---- weights.py --------------------------------------------------------------------------------


def test_list_shows_every_name_and_where_its_file_is(tool, folder):
    (folder / ZOO[NAME].file).touch()
    _, (_, *lines), _ = tool('weights.py', 'list')
    states = {line.split()[0]: line for line in lines}
    assert states.keys() == ZOO.keys()
    assert states[NAME].split()[-2:] == ['here', 'imagenet/focalnet_t.py']
    assert 'for download' in states['mixformer_b1_in1k']
    assert 'only dead mirrors' in states['focal_tiny_in1k']
    assert states['focalnet_tiny_lrf_deep_in1k'].endswith('never published')
    assert states['ppyoloe_plus_focalnet_tiny_lrf_36e_coco'].endswith('refused')
    detector = states['sparse_rcnn_focalnet_tiny_lrf_3x_coco'].split()
    assert {'detector', '49.9', 'sparse_rcnn/focalnet_t_3x.py'} <= {*detector}


def test_where_shows_the_path_the_mirrors_and_the_config(tool, folder):
    path, entry = folder / ZOO[NAME].file, ZOO[NAME]
    _, (first, *lines), _ = tool('weights.py', 'where', NAME)
    assert first == f'{path} (not there)'
    assert [line.split()[0] for line in lines[: len(entry.addresses)]] == [
        *entry.mirrors,
        *entry.dead,
    ]
    assert f'  {entry.mirrors[1]} (sha256 {entry.sha256[entry.mirrors[1]]})' in lines
    assert f'  {entry.dead[0]} (dead)' in lines
    assert lines[-2:] == [
        'classifier FocalNet tiny_lrf: top-1 82.3',
        'config: configs/imagenet/focalnet_t.py',
    ]
    path.touch()
    assert tool('weights.py', 'where', NAME)[1][0] == str(path)


def test_where_shows_the_options_of_a_file_and_why_one_is_refused(tool):
    _, lines, _ = tool('weights.py', 'where', 'dino_focalnet_large_fl4_4scale_12e_coco')
    assert "backbone options: {'normalize_modulator': False}" in lines
    _, lines, _ = tool('weights.py', 'where', 'ppyoloe_plus_focalnet_tiny_lrf_36e_coco')
    assert lines[-1].startswith('refused: a PP-YOLOE+')


def test_fetch_prints_the_file(tool, folder):
    (folder / ZOO[NAME].file).touch()
    assert tool('weights.py', 'fetch', NAME)[:2] == (0, [str(folder / ZOO[NAME].file)])


@pytest.mark.parametrize('command', ['fetch', 'where'])
def test_unknown_name_gets_one_line(tool, command):
    status, _, (line,) = tool('weights.py', command, 'focalnet_tiny_lfr_in1k')
    assert status == 2 and NAME in line


def test_fetching_a_missing_file_gets_one_line(tool, folder):
    status, _, (line,) = tool('weights.py', 'fetch', NAME)
    assert status == 2 and str(folder) in line


@pytest.mark.parametrize(
    'record, state, expected',
    [
        (None, 'unrecorded', 0),
        ('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', 'good', 0),
        ('0' * 64, 'changed', 1),
    ],
)
def test_verify_fails_for_a_changed_file(tool, folder, record, state, expected):
    (folder / 'x.pth').touch()  # empty, and so is what the second record is of
    if record:
        (folder / 'x.pth.sha256').write_text(f'{record}  x.pth\n')
    status, lines, _ = tool('weights.py', 'verify')
    assert status == expected
    assert lines[0].split() == [state, str(folder / 'x.pth')]
