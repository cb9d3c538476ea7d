"""``focal-mm export``, and that the exported graphs are what the models compute."""

import json

import pytest
import torch

from focal_mm.cli import export, predict
from focal_mm.cli.runner import load_config
from focal_mm.datasets.shapes import draw_scene, save_photograph
from focal_mm.export import parts_of

OUTPUTS = {
    'classifier': {'scores'},
    'segmentor': {'logits', 'labels'},
    'detector': {f'{name}{level}' for name in ('map', 'scores', 'boxes') for level in range(5)},
}


@pytest.fixture
def call(tiny_models, command):
    """Runs the command with a model; returns its exit status and its lines on both streams."""

    def run(kind, *args):
        files = (tiny_models / f'{kind}.py', tiny_models / f'{kind}.pth')
        status, out, err = command('export', *files, *args)
        return status, out, err.splitlines()

    return run


@pytest.mark.parametrize('kind', ['segmentor', 'detector'])
def test_files_agree_with_pytorch_at_several_sizes(call, tmp_path, kind):
    pytest.importorskip('onnxruntime')
    status, text, _ = call(kind, tmp_path / 'model.onnx', '--json')
    checks = json.loads(text)
    assert status == 0
    assert set(checks[0]['differences']) == OUTPUTS[kind]
    if kind == 'detector':
        assert set(checks[1]['differences']) == {'scores', 'deltas', 'masks'}
        assert (tmp_path / 'model.regions.onnx').is_file()
    assert all(value < 1e-4 for check in checks for value in check['differences'].values())


def test_products_in_8_bits_are_close_and_small(call, tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for index in range(3):
        save_photograph(draw_scene(0, 'train', index).image, pictures / f'{index}.jpg')
    status, text, _ = call('detector', tmp_path / 'model.onnx', '--int8', pictures, '--json')
    checks = json.loads(text)
    assert status == 0 and len(checks) == 2
    for check in checks:
        assert all(0 <= value < 5e-2 for value in check['differences'].values())
        assert any(value > 1e-7 for value in check['differences'].values())
        graph = onnx.load(check['file']).graph
        weights = {value.name: value for value in graph.initializer}
        sources = {node.output[0]: node.input[0] for node in graph.node}
        products = [node for node in graph.node if node.op_type in ('Conv', 'Gemm')]
        for name in (node.input[1] for node in products):
            weight = weights[sources.get(name, name)]
            depthwise = weight.dims[1:2] == [1]
            kind = onnx.TensorProto.FLOAT if depthwise else onnx.TensorProto.INT8
            assert weight.data_type == kind


def test_a_larger_difference_is_a_fault(call, tmp_path, monkeypatch):
    check = dict(file=tmp_path / 'x.onnx', shapes=dict(y=[1, 3]), differences=dict(y=0.5))
    monkeypatch.setattr(export, 'export', lambda *_: [check])
    status, text, (line,) = call('classifier', tmp_path / 'x.onnx')
    assert status == 1 and '--tolerance' in line
    assert f'{tmp_path}/x.onnx: largest difference to PyTorch 5.0e-01' in text
    assert call('classifier', tmp_path / 'x.onnx', '--tolerance', 1)[0] == 0


def test_a_missing_package_is_one_line(call, tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    status, _, (line,) = call('classifier', tmp_path / 'x.onnx')
    assert status == 2 and 'pip install onnx onnxscript onnxruntime' in line


@pytest.mark.stock
@pytest.mark.parametrize(
    'words, hint',
    [
        (['x.pt'], '.onnx'),
        (['x.onnx', '--image', 'nowhere.jpg'], 'nowhere.jpg'),
        (['x.onnx', '--int8', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    status, _, (line,) = call('classifier', *words)
    assert status == 2 and hint in line


@pytest.mark.stock
@pytest.mark.parametrize('kind', OUTPUTS)
def test_graphs_are_what_the_model_predicts(tiny_models, kind):
    cfg = load_config(str(tiny_models / f'{kind}.py'))
    predictor = predict.Predictor(cfg, str(tiny_models / f'{kind}.pth'), 'cpu')
    pixels = export.read_image(None)
    picture = export.prepare(predictor, pixels)
    with torch.no_grad():
        (sample,) = predictor.forward([pixels])
        first, *second = parts_of(predictor.model, picture.expand(2, -1, -1, -1))
        outputs = first.module(picture)
    if kind == 'classifier':
        torch.testing.assert_close(outputs['scores'][0], sample.pred_score)
    elif kind == 'segmentor':
        same = torch.nn.functional.interpolate(outputs['logits'], sample.ori_shape, mode='bilinear')
        assert (same.argmax(1)[0] == sample.pred_sem_seg.data[0]).float().mean() > 0.999
    else:
        maps = [outputs[f'map{level}'] for level in range(5)]
        regions = torch.cat([torch.zeros(5, 1), sample.pred_instances.bboxes * 96 / 128], 1)
        head = predictor.model.roi_head
        with torch.no_grad():
            found = second[0].module(maps, regions)
            masks = head._mask_forward(maps[:4], regions)['mask_preds']
            scores = head._bbox_forward(maps[:4], regions)['cls_score'].softmax(-1)
        torch.testing.assert_close(found['masks'], masks)
        torch.testing.assert_close(found['scores'], scores)
