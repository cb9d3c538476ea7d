"""``focal-mm look`` as a user calls it, with tiny models of random weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focal_mm.cli.look import Output
from focal_mm.datasets.shapes import draw_scene

pytestmark = pytest.mark.stock
pytest.importorskip('pytorch_grad_cam')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A wide picture, a tall grey one, a tiny one and a broken one."""
    folder = tmp_path_factory.mktemp('photos')
    picture = Image.fromarray(draw_scene(0, 'val', 1).image)
    picture.crop((0, 0, 128, 90)).save(folder / 'wide.png')
    picture.convert('L').resize((30, 200)).save(folder / 'grey tall.png')
    picture.resize((4, 3)).save(folder / 'tiny.png')
    (folder / 'broken.jpg').write_text('no picture')
    return folder


def content_of(page: Path) -> dict:
    """What a page shows."""
    text = page.read_text(encoding='utf-8')
    return json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])


def test_sheets_and_page_are_written(command, tiny_models, photos, tmp_path):
    model = ('--model', tiny_models / 'classifier.py')
    model += ('--checkpoint', tiny_models / 'classifier.pth')
    picture = photos / 'grey tall.png'
    status, out, _ = command('look', picture, *model, '--out', tmp_path / 'fig.svg')
    assert status == 0
    files = {Path(line).name: Path(line) for line in out.splitlines()}
    sheets = ['overview', *(f'stage{i}-block1' for i in range(1, 5))]
    assert set(files) == {'fig.html', *(f'fig-grey tall-{one}.svg' for one in sheets)}
    assert all(b'<svg' in files[name].read_bytes()[:1000] for name in files if 'html' not in name)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_backbone_within_a_model_sees_what_the_pipeline_makes(
    command, tiny_models, photos, tmp_path, kind
):
    pictures = [photos / 'grey tall.png', photos / 'tiny.png']
    model = ('--model', tiny_models / f'{kind}.py', '--checkpoint', tiny_models / f'{kind}.pth')
    status, _, _ = command('look', *pictures, *model, '--out', tmp_path / 'page.html')
    assert status == 0
    shown = content_of(tmp_path / 'page.html')['entries']
    assert [entry['title'] for entry in shown] == ['grey tall.png', 'tiny.png']
    for entry in shown:
        assert (entry['random'], f'{kind}.pth' in entry['model']) == (False, True)
        assert max(entry['width'], entry['height']) == 96  # the scale in the test pipeline
        assert entry['stages'][0]['rows'] >= -(-entry['height'] // 4)
        assert entry['activation']


def test_two_checkpoints_of_one_model_lie_side_by_side(command, tiny_models, photos, tmp_path):
    weights = tiny_models / 'classifier.pth'
    two = ('--checkpoint', weights, '--checkpoint', weights)
    model = ('--model', tiny_models / 'classifier.py')
    out = tmp_path / 'page.html'
    status, lines, err = command('look', photos / 'wide.png', *model, *two, '--whole', '--out', out)
    assert (status, lines.split()) == (0, [str(out)])
    assert '--whole' not in err
    sizes = [(entry['width'], entry['height']) for entry in content_of(out)['entries']]
    assert sizes == [(364, 256)] * 2  # scaled, not cropped


def test_random_weights_and_broken_pictures_are_named(command, tiny_models, photos, tmp_path):
    files = [photos / 'wide.png', photos / 'broken.jpg']
    model = ('--model', tiny_models / 'classifier.py', '--from-scratch', '--blocks', 'all')
    options = ('--layer', 'backbone.patch_embed', '--label', '3')
    status, out, err = command('look', *files, *model, *options, '--out', tmp_path)
    assert status == 1
    assert 'broken.jpg: left out: not a picture' in err
    assert '--whole shows all' in err
    assert 'wide-stage3-block1.png' in out
    (entry,) = content_of(tmp_path / 'look.html')['entries']
    assert entry['random'] is True
    assert 'class 3' in entry['activation']['title']
    sheet = np.asarray(Image.open(tmp_path / 'wide-overview.png').convert('RGB'))[:60]
    assert (np.abs(sheet.astype(int) - (0xD5, 0x5E, 0x00)).max(-1) < 12).any()  # the warning


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--model', 'focalnet_tiny_lfr_in1k'], 'did you mean focalnet_tiny_lrf_in1k'),
        (['--model', 'nowhere.py'], 'nowhere.py: no such config'),
        (['--checkpoint', 'nowhere.pth'], 'nowhere.pth: no such checkpoint'),
        (['--query', '3', '0.5'], 'from 0 to 1'),
        (['--out', 'figure.jpg'], 'figure.jpg: give a folder, or a file that ends in'),
        (['--model', 'CONFIG', '--from-scratch', '--layer', 'neck'], "has no layer 'neck'"),
        (['--model', 'CONFIG', '--from-scratch', '--label', '9999'], 'label 9999: the model has'),
    ],
)
def test_mistakes_end_in_one_line(command, tiny_models, photos, tmp_path, arguments, words):
    arguments = [one.replace('CONFIG', str(tiny_models / 'classifier.py')) for one in arguments]
    out = () if '--out' in arguments else ('--out', tmp_path)
    status, _, err = command('look', photos / 'wide.png', *arguments, *out)
    assert status == 2
    assert err.startswith('focal-mm look: error: ')
    assert words in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_published_weights_that_cannot_be_had_are_named(command, photos, monkeypatch, tmp_path):
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    for name in ('focalnet_tiny_lrf_in1k', 'focalnet_tiny_lrf_deep_in1k'):
        status, _, err = command('look', photos / 'wide.png', '--model', name)
        assert status == 2
        assert f'focal://{name}' in err
        assert 'FOCAL_MM_WEIGHTS' in err


def test_suffix_says_what_is_written():
    assert Output.parse(Path('a/b')) == (Path('a/b'), '', '.png')
    assert Output.parse(Path('a/b.pdf')) == (Path('a'), 'b', '.pdf')
    assert Output.parse(Path('a/b.html')) == (Path('a'), 'b', '')
