import pytest
import torch
from torch import nn

from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer
from focal_mm.kernels.map_conv import MapConv2d


@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16])
@pytest.mark.parametrize('width', [1, 2, 13])
@pytest.mark.parametrize(
    'layer',
    [
        lambda: MapConv2d(6, 8, 3, 2, 1),
        lambda: MapConv2d(6, 8, 3, 2, 1, bias=False),
        lambda: MapConv2d(6, 6, 5, padding=2, groups=6),
        lambda: MapConv2d(6, 8, (3, 5), (1, 2), 2, (2, 1)),
        lambda: MapConv2d(6, 8, 3, padding='same'),
        lambda: MapConv2d(6, 8, 3, padding=1, padding_mode='circular'),
    ],
)
def test_compiled_layer_has_values_and_gradients_of_conv2d(layer, width, dtype):
    torch._dynamo.reset()
    layer, x = layer(), torch.randn(2, 6, 17, width, requires_grad=True)
    plain = nn.Conv2d.forward
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    results = []
    for run, half in ((lambda x: plain(layer, x), False), (compiled, dtype != torch.float)):
        with torch.autocast('cpu', dtype, enabled=half):
            out = run(x)
        grads = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
        results.append([out, *grads])
    for single, other in zip(*results, strict=True):
        bound = (1e-5 if dtype == torch.float else 0.03) * single.abs().max()
        assert (other - single).abs().max() <= bound


@pytest.mark.parametrize(
    'net',
    [
        lambda: FocalNet('tiny_lrf'),
        lambda: FocalNet(dict(embed_dims=16, depths=(1, 1)), use_conv_embed=True),
        lambda: FocalTransformer('tiny'),
        lambda: MixFormer('b0'),
        lambda: MixFormer('b0', mlp_dwconv=True),
        lambda: MixFormer(
            'b0', parallel=False, channel_interaction=False, spatial_interaction=False
        ),
    ],
)
@pytest.mark.parametrize('trains', [False, True])
def test_graphs_have_no_convolution_that_changes_the_layout_of_maps(net, trains):
    found: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: object) -> object:
        calls = (node for node in graph.graph.nodes if node.op.startswith('call'))
        found.extend(str(node.target) for node in calls)
        return graph

    torch._dynamo.reset()
    net = net().train(trains) or net
    with torch.set_grad_enabled(trains):
        torch.compile(net, backend=collect, fullgraph=True)(torch.randn(2, 3, 64, 64))
    assert not [name for name in found if 'conv' in name and 'focal_mm' not in name]
    assert any('focal_mm' in name for name in found)
