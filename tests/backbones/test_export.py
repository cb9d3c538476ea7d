"""Compiling and exporting the three families: one graph for images of every size."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer

DYNAMIC = torch.export.Dim.DYNAMIC
ONE_STAGE = dict(
    arch=dict(embed_dims=32, depths=(2,)),
    num_heads=1,
    window_size=23,
    use_shift=True,
    focal_windows=3,
    expand_sizes=3,
)
NETS = {
    'focalnet': lambda: FocalNet(dict(embed_dims=32, depths=(1, 1)), focal_windows=9),
    'focal': lambda: FocalTransformer(**ONE_STAGE, focal_levels=3),
    'focal_fast': lambda: FocalTransformer(**ONE_STAGE, focal_topk=40),
    'mixformer': lambda: MixFormer(
        dict(embed_dims=32, depths=(2,)),
        num_heads=1,
        window_size=23,
        use_shift=True,
        mlp_dwconv=True,
    ),
}
# The map of the first has one window, those of the others one across, one down, and four.
SIZES = (90, 92), (90, 130), (130, 90), (161, 117)


def trained(net: nn.Module) -> nn.Module:
    """With values that let all that is computed be seen in the output."""
    torch.manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.add_(
                torch.rand_like(value)
                if name.endswith('running_var')
                else torch.randn_like(value) * 0.1
            )
    return net.eval()


def images(*batches: int) -> list[Tensor]:
    return [torch.randn(batch, 3, *size) for batch in batches for size in SIZES]


@cache
def exported(name: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A net, and its graph made of images that are one window."""
    net = trained(NETS[name]())
    with torch.no_grad():
        return net, torch.export.export(
            net,
            (torch.randn(2, 3, *SIZES[0]),),
            dynamic_shapes=({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},),
        )


@pytest.mark.parametrize('name', NETS)
def test_one_image_and_several_of_any_size_are_two_compilations(name):
    torch._dynamo.reset()
    net, counter = trained(NETS[name]()), CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for x in images(1, 2):
            torch.testing.assert_close(compiled(x), net(x), rtol=0, atol=2e-4)
    assert counter.frame_count <= 2


@pytest.mark.parametrize('name', NETS)
def test_exported_net_takes_every_size(name):
    net, program = exported(name)
    with torch.no_grad():
        for x in images(1, 3):
            torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=2e-4)


# Of equally distant tokens ONNX leaves out others than PyTorch in the faster Focal Transformer.
@pytest.mark.parametrize('name', [name for name in NETS if name != 'focal_fast'])
def test_onnx_net_takes_every_size(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    net, program = exported(name)
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / 'net.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    with torch.no_grad():
        for x in images(1, 3):
            outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            torch.testing.assert_close(
                tuple(map(torch.from_numpy, outs)), net(x), rtol=0, atol=2e-4
            )
