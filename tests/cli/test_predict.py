"""``focal-mm predict`` as a user calls it, with tiny models of random weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from focal_mm.cli import predict
from focal_mm.cli.pictures import find_sources
from focal_mm.cli.runner import load_config
from focal_mm.datasets.shapes import draw_scene

pytestmark = pytest.mark.stock

KINDS = ('detector', 'segmentor', 'classifier')


@pytest.fixture
def call(tiny_models, command):
    """Runs the command with a model; returns its exit status and its lines on both streams."""

    def run(kind, *args):
        files = (tiny_models / f'{kind}.py', tiny_models / f'{kind}.pth')
        status, out, err = command('predict', *files, *args)
        return status, out.splitlines(), err.splitlines()

    return run


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder in folders, with names of several scripts, odd pictures and broken ones."""
    folder = tmp_path_factory.mktemp('photos of a trip')
    (folder / 'ünï 写真').mkdir()
    picture = Image.fromarray(draw_scene(0, 'val', 1).image)
    picture.save(folder / 'ünï 写真' / 'Фото 1.JPG')
    picture.convert('L').resize((80, 60)).save(folder / 'gray.png')
    picture.convert('RGBA').save(folder / 'clear.png')
    (folder / 'junk.jpg').write_text('no picture')
    content = (folder / 'ünï 写真' / 'Фото 1.JPG').read_bytes()
    (folder / 'cut.jpg').write_bytes(content[: len(content) // 2])
    (folder / 'notes.txt').touch()
    return folder


GOOD = {'ünï 写真/Фото 1.JPG', 'gray.png', 'clear.png'}


@pytest.mark.parametrize('kind', KINDS)
def test_folder_is_predicted_and_broken_pictures_are_named(call, photos, tmp_path, kind):
    out = tmp_path / 'found'
    status, lines, errors = call(kind, photos, '--out', out, '--score', 0)
    assert status == 1
    assert [line for line in errors if 'junk.jpg: left out: ' in line]
    assert [line for line in errors if 'cut.jpg: left out: ' in line]
    assert lines[0].startswith('3 pictures')
    assert str(out / 'contact_sheet.jpg') in lines

    drawn = {path.relative_to(out / 'drawn').as_posix() for path in (out / 'drawn').rglob('*.*')}
    assert drawn == GOOD
    for name in GOOD:
        assert Image.open(out / 'drawn' / name).size == Image.open(photos / name).size
    assert not list(out.rglob('*.part'))
    content = json.loads((out / 'predictions.json').read_text(encoding='utf-8'))
    assert {image['file_name'] for image in content['images']} == GOOD


def test_objects_are_a_dataset_of_coco(call, photos, tmp_path):
    coco = pytest.importorskip('pycocotools.coco')
    status, _, _ = call('detector', photos / 'clear.png', '--out', tmp_path, '--score', 0)
    assert status == 0
    truth = coco.COCO(tmp_path / 'predictions.json')
    assert len(truth.anns) == 5
    for annotation in truth.anns.values():
        mask = truth.annToMask(annotation)
        assert mask.shape == (128, 128) and mask.sum() == annotation['area']
        x, y, width, height = annotation['bbox']
        assert 0 <= x <= x + width <= 128 and 0 <= y <= y + height <= 128
    assert len(truth.loadRes(truth.dataset['annotations']).anns) == 5
    assert truth.cats[90]['name'] == 'toothbrush'  # COCO's 80 classes go up to number 90


def test_categories_have_the_numbers_of_the_dataset(tmp_path):
    names = [f'ü {i}' for i in range(80)]
    numbers = [3 * i + 7 for i in range(80)]
    categories = [dict(id=i, name=name) for i, name in zip(numbers, names)]
    (tmp_path / 'own.json').write_text(json.dumps(dict(categories=categories[::-1])))
    dataset = dict(data_root=str(tmp_path), ann_file='own.json')
    assert predict.category_ids(dataset, names) == numbers
    assert predict.category_ids(dict(ann_file='nowhere.json'), names) == list(range(1, 81))


def test_lower_scores_are_left_out(call, photos, tmp_path):
    status, (line, *_), _ = call('detector', photos / 'gray.png', '--out', tmp_path)
    assert status == 0 and '1 picture, 0 objects' in line


def test_label_maps_have_the_numbers_of_the_dataset(call, tiny_models, photos, tmp_path):
    from mmseg.apis import MMSegInferencer

    call('segmentor', photos / 'clear.png', '--out', tmp_path)
    written = Image.open(tmp_path / 'labels' / 'clear.png')
    own = MMSegInferencer(
        str(tiny_models / 'segmentor.py'), str(tiny_models / 'segmentor.pth'), device='cpu'
    )
    expected = own(str(photos / 'clear.png'))['predictions'] + 1
    assert np.array_equal(np.array(written), expected)  # ADE20K counts from 1; 0 is unlabeled
    colors = np.array(written.convert('RGB'))[expected == expected[0, 0]]
    assert (colors == colors[0]).all()
    (image,) = json.loads((tmp_path / 'predictions.json').read_text())['images']
    assert sum(image['shares'].values()) == pytest.approx(1, abs=0.01)


def test_classes_are_those_of_the_test_pipeline(call, tiny_models, photos, tmp_path):
    from mmpretrain.apis import ImageClassificationInferencer

    call('classifier', photos / 'clear.png', '--out', tmp_path)
    (image,) = json.loads((tmp_path / 'predictions.json').read_text())['images']
    own = ImageClassificationInferencer(
        str(tiny_models / 'classifier.py'), str(tiny_models / 'classifier.pth'), 'cpu'
    )
    (expected,) = own(str(photos / 'clear.png'))
    assert image['label'] == expected['pred_label'] and image['name']
    assert image['score'] == pytest.approx(expected['pred_score'], abs=1e-4)


def test_batches_change_nothing(call, photos, tmp_path):
    texts = []
    for batch in (1, 3):
        out = tmp_path / str(batch)
        call('segmentor', photos, '--out', out, '--batch', batch)
        texts.append((out / 'predictions.json').read_text())
    assert texts[0] == texts[1]


def test_video_becomes_a_drawn_video(call, tmp_path):
    clip = tmp_path / 'a clip.avi'
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*'MJPG'), 5, (96, 64))
    for i in range(4):
        writer.write(np.full((64, 96, 3), 50 * i, np.uint8))
    writer.release()
    (tmp_path / 'broken.mp4').write_bytes(b'nothing')
    status, lines, errors = call('classifier', tmp_path, '--out', tmp_path / 'out', '--batch', 3)
    assert status == 1 and lines[0].startswith('4 pictures')
    assert [line for line in errors if 'broken.mp4: left out' in line]
    drawn = cv2.VideoCapture(str(tmp_path / 'out' / 'drawn' / 'a clip.avi.mp4'))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4 and drawn.get(cv2.CAP_PROP_FPS) == 5
    images = json.loads((tmp_path / 'out' / 'predictions.json').read_text())['images']
    assert [image['file_name'] for image in images] == [f'a clip.avi/{i:06d}' for i in range(4)]
    assert {path.name for path in (tmp_path / 'out' / 'drawn').iterdir()} == {'a clip.avi.mp4'}


def test_summary_as_json(call, photos, tmp_path):
    status, lines, _ = call('classifier', photos, '--out', tmp_path, '--json')
    summary = json.loads('\n'.join(lines))
    assert status == 1 and summary['pictures'] == 3 and summary['pictures_per_second'] > 0
    assert {Path(name).name for name in summary['skipped']} == {'junk.jpg', 'cut.jpg'}


def test_weights_that_are_missing_or_do_not_fit_are_named(tiny_models, tmp_path):
    cfg = load_config(str(tiny_models / 'segmentor.py'))
    state = torch.load(tiny_models / 'segmentor.pth')['state_dict']
    torch.save({k: v for k, v in state.items() if 'auxiliary' not in k}, tmp_path / 'x.pth')
    predict.Predictor(cfg, str(tmp_path / 'x.pth'), 'cpu')  # a prediction does not need it
    torch.save({k: v for k, v in state.items() if 'decode' not in k}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'lacks decode_head.conv_seg.weight, .* and \d+ more'):
        predict.Predictor(cfg, str(tmp_path / 'x.pth'), 'cpu')
    torch.save(state | {'decode_head.conv_seg.bias': torch.zeros(3)}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='size mismatch for decode_head.conv_seg.bias'):
        predict.Predictor(cfg, str(tmp_path / 'x.pth'), 'cpu')


def test_names_come_from_the_checkpoint(tiny_models, tmp_path):
    cfg = load_config(str(tiny_models / 'classifier.py'))
    state = torch.load(tiny_models / 'classifier.pth')['state_dict']
    meta = dict(dataset_meta=dict(classes=['Ä', 'B'], palette=[(1, 2, 3), (4, 5, 6)]))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'x.pth')
    predictor = predict.Predictor(cfg, str(tmp_path / 'x.pth'), 'cpu')
    assert predictor.classes[:3] == ['Ä', 'B', 'class 2'] and len(predictor.classes) == 1000
    assert predictor.palette[1].tolist() == [4, 5, 6]


# ---- which files -------------------------------------------------------------------------------


def test_checkpoint_that_would_run_code_is_refused(tiny_models, photos, tmp_path, command):
    torch.save({'meta': torch.nn.Linear(1, 1), 'state_dict': {}}, tmp_path / 'x.pth')
    status, _, err = command('predict', tiny_models / 'classifier.py', tmp_path / 'x.pth', photos)
    assert status == 2 and 'x.pth: refused, since it stores torch.nn.modules.linear.Linear' in err


def names(arguments, out='nowhere'):
    return [source.name for source in find_sources(list(map(str, arguments)), Path(out))]


def test_names_keep_the_folders_below_what_was_named(tmp_path, monkeypatch):
    for name in ('a/1.jpg', 'a/b/2.PNG', 'c/1.jpg', 'c/clip.mp4', 'out/drawn/1.jpg', 'a/x.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names([tmp_path / 'a']) == ['1.jpg', 'b/2.PNG']
    assert names([tmp_path], tmp_path / 'out') == ['a/1.jpg', 'a/b/2.PNG', 'c/1.jpg', 'c/clip.mp4']
    assert names([tmp_path / 'a/1.jpg', tmp_path / 'c/1.jpg']) == ['a/1.jpg', 'c/1.jpg']
    assert names([tmp_path / 'a/1.jpg', tmp_path / 'a/1.jpg']) == ['1.jpg']
    assert names([tmp_path / '*' / '1.jpg']) == ['a/1.jpg', 'c/1.jpg']
    monkeypatch.setenv('HOME', str(tmp_path))
    assert names(['~/**/2.*']) == ['2.PNG']


@pytest.mark.parametrize('name', ['nowhere.jpg', 'no/*.jpg', ''])
def test_nothing_to_predict_is_an_error(tmp_path, name):
    with pytest.raises(FileNotFoundError, match='no '):
        find_sources([str(tmp_path / name)], Path('out'))
