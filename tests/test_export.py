import pytest
import torch

from focal_mm.backbones import FocalNet
from focal_mm.export import Part, angle, quantize, to_onnx


@pytest.fixture(scope='module')
def net():
    """Kernels of 9, 11 and 13 columns."""
    torch.manual_seed(0)
    return FocalNet(dict(embed_dims=32, depths=(1, 1)), focal_windows=9, focal_levels=3).eval()


@pytest.fixture(scope='module')
def file(net, tmp_path_factory):
    pytest.importorskip('onnxruntime')
    path = tmp_path_factory.mktemp('onnx') / 'net.onnx'
    to_onnx(net, (torch.randn(1, 3, 64, 96),), input_names=['image']).save(path)
    return path


def maps_of(path, image):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(out) for out in session.run(None, dict(image=image.numpy()))]


def test_a_graph_has_the_form_that_runtimes_compute_fastest(net, file):
    import onnx

    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(maps_of(file, image), list(net(image)), rtol=0, atol=2e-5)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    weights = {value.name: value.dims for value in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    inputs = {
        kind: [node.input for node in graph.node if node.op_type == kind]
        for kind in ('Conv', 'MatMul', 'LayerNormalization')
    }
    kernels = {tuple(weights[weight][2:]) for _, weight, *_ in inputs['Conv']}
    assert kernels == {(9, 9), (11, 15), (13, 15)}
    assert all(weight in weights for _, weight in inputs['MatMul'])
    assert {ranks[x] for x, *_ in inputs['LayerNormalization']} == {3}
    kept = {tuple(weight.shape[2:]) for name, weight in net.named_parameters() if 'focal_l' in name}
    assert kept == {(9, 9), (11, 11), (13, 13)}


def test_only_values_of_one_sign_have_their_zero_at_the_edge_of_8_bits(net, file, tmp_path):
    import onnx

    new, image = tmp_path / 'net.onnx', torch.randn(1, 3, 64, 96)
    new.write_bytes(file.read_bytes())
    quantize(Part('', net, (image,)), new, ((torch.randn(1, 3, 64, 96),) for _ in range(3)))
    with torch.no_grad():
        assert all(0 < angle(*pair) < 2e-3 for pair in zip(net(image), maps_of(new, image)))
    graph = onnx.load(new).graph
    makers = {name: node for node in graph.node for name in node.output}
    kinds = {value.name: value.data_type for value in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type != 'MatMul':
            continue
        reader, weight = (makers[name] for name in node.input)
        assert kinds[weight.input[0]] == onnx.TensorProto.INT8
        source = makers[makers[reader.input[0]].input[0]].op_type
        found.add((source == 'Gelu', kinds[reader.input[2]] == onnx.TensorProto.UINT8))
    assert found == {(True, True), (False, False)}
