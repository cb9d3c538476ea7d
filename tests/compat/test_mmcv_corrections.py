"""roi_align of mmcv.ops in ONNX: (2, 3, 9, 11) features and 7 RoIs in and around them. The other
correction is tested in mmcv_ops/test_sync_bn.py."""

from pathlib import Path

import pytest
import torch
from mmcv.ops import RoIAlign
from torch import Tensor, nn

pytestmark = pytest.mark.stock

DYNAMIC = torch.export.Dim.DYNAMIC
ROIS = torch.tensor(
    [
        [0, 1.3, 2.1, 15.2, 13.9],  # inside
        [1, 0, 0, 22, 18],  # the whole map
        [0, -6.5, -3.2, 7.1, 9.6],  # over the upper left corner
        [1, 14.4, 9.7, 30.3, 25.1],  # over the lower right corner
        [1, 5.2, 6.1, 5.9, 6.4],  # smaller than a pixel
        [0, 40.0, 40.0, 50.0, 55.0],  # outside
        [1, 3.5, 1.5, 3.5, 12.5],  # no width
    ]
)


def run(path: Path, *inputs: Tensor) -> Tensor:
    """Output of an ONNX file."""
    session = pytest.importorskip('onnxruntime').InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    (output,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})
    return torch.from_numpy(output)


class Pyramid(nn.Module):
    """Both kinds of RoIAlign, with and without a number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            RoIAlign((3, 2), 0.5, ratio, aligned=aligned)
            for ratio in (0, 2)
            for aligned in (True, False)
        )

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return torch.stack([layer(features, rois) for layer in self.layers])


def test_graph_takes_any_number_of_rois_and_any_size(tmp_path):
    pytest.importorskip('onnxscript')
    features, net, path = torch.randn(2, 3, 9, 11), Pyramid().eval(), tmp_path / 'net.onnx'
    sizes = dict.fromkeys((0, 2, 3), DYNAMIC), {0: DYNAMIC}
    program = torch.export.export(net, (features, ROIS), dynamic_shapes=sizes)
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    for x, rois in ((features, ROIS), (torch.randn(3, 3, 14, 8), ROIS[:3])):
        expected = net(x, rois)
        torch.testing.assert_close(program.module()(x, rois), expected)
        torch.testing.assert_close(run(path, x, rois), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('opset', [11, 13, 16, 20])
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_older_exporter_writes_a_valid_file_for_every_opset(tmp_path, opset):
    pytest.importorskip('onnx')
    features, net, path = torch.randn(2, 3, 9, 11), Pyramid().eval(), tmp_path / 'net.onnx'
    torch.onnx.export(net, (features, ROIS), path, dynamo=False, opset_version=opset)
    # Below 16 there is no shift by half a pixel, and RoIs are at least a pixel large.
    rois = ROIS if opset >= 16 else ROIS.clone().index_copy_(0, torch.tensor([4, 6]), ROIS[:2])
    torch.testing.assert_close(run(path, features, rois), net(features, rois), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_maximum_is_refused_in_one_line(tmp_path):
    """ONNX takes it of other numbers."""
    net = RoIAlign((3, 2), 0.5, pool_mode='max')
    inputs = torch.randn(2, 3, 9, 11), ROIS
    message = r"roi_align: pool_mode='max' cannot be exported, .*; use pool_mode='avg'"
    with pytest.raises(NotImplementedError, match=message):
        torch.onnx.export(net, inputs, tmp_path / 'net.onnx', dynamo=False)
    with pytest.raises(Exception, match=message):
        torch.export.export(net, inputs)
