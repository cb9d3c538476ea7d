"""Exports of a backbone with what a detector's neck or a segmentor's head makes of its maps, as
in docs/export.md."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from focal_mm.export import adaptive_avg_pool2d

pytestmark = pytest.mark.stock

CONFIGS = Path(__file__).parents[2] / 'configs'
DYNAMIC = torch.export.Dim.DYNAMIC
SMALL = dict(arch=dict(embed_dims=16, depths=(1, 1)), out_indices=(0, 1), init_cfg=None)
DIMS = [16, 32]


class Maps(nn.Module):
    """A backbone and what comes after it."""

    def __init__(self, config: str, sizes: dict, part: str, **settings) -> None:
        super().__init__()
        cfg = Config.fromfile(CONFIGS / config)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        self.backbone = MODELS.build(dict(cfg.model.backbone, **SMALL, **sizes))
        self.after = MODELS.build(dict(cfg.model[part], in_channels=DIMS, **settings))

    def forward(self, image):
        out = self.after(self.backbone(image))
        return out if isinstance(out, tuple) else (out,)


FPN = dict(part='neck', out_channels=16, num_outs=3)
UPERNET = dict(
    part='decode_head', in_index=(0, 1), channels=16, num_classes=5, norm_cfg=dict(type='BN')
)
FOCAL = dict(num_heads=(1, 2), focal_windows=(15, 13))
# The second map of the first is smaller than a window, and that of the last needs four windows.
SIZES = (25, 33), (48, 64), (100, 90)

NETS = {
    'mask_rcnn-focal': partial(Maps, 'mask_rcnn/focal_t_1x.py', FOCAL, **FPN),
    'upernet-focalnet': partial(Maps, 'upernet/focalnet_t.py', {}, **UPERNET),
}


@pytest.mark.onedl
@pytest.mark.parametrize('net', NETS.values(), ids=NETS)
def test_backbone_and_neck_export_for_every_size(net, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    net = net().eval()
    with torch.no_grad():
        program = torch.export.export(
            net, (torch.randn(1, 3, *SIZES[1]),), dynamic_shapes=({2: DYNAMIC, 3: DYNAMIC},)
        )
        module = program.module(check_guards=False)
        pooling = torch.ops.aten.adaptive_avg_pool2d.default
        if any(node.target == pooling for node in program.graph.nodes):
            program = program.run_decompositions({pooling: adaptive_avg_pool2d})
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / 'net.onnx')
        session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
        for size in SIZES:
            image = torch.randn(1, 3, *size)
            expected = net(image)
            torch.testing.assert_close(module(image), expected, rtol=0, atol=2e-4)
            outs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
            torch.testing.assert_close(
                tuple(map(torch.from_numpy, outs)), expected, rtol=0, atol=2e-4
            )


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (6, 6)])
def test_pooling_for_onnx_is_pytorchs(size):
    x = torch.randn(2, 3, 7, 11)
    torch.testing.assert_close(adaptive_avg_pool2d(x, size), F.adaptive_avg_pool2d(x, size))
