import pytest
import torch

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
def test_compiled_layer_has_values_and_gradients_of_eager(layer, width, dtype):
    torch._dynamo.reset()
    layer, x = layer(), torch.randn(2, 6, 17, width, requires_grad=True)
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    results = []
    for run, half in ((layer, False), (compiled, dtype != torch.float)):
        with torch.autocast('cpu', dtype, enabled=half):
            out = run(x)
        grads = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
        results.append([out, *grads])
    for single, other in zip(*results, strict=True):
        bound = (1e-5 if dtype == torch.float else 0.03) * single.abs().max()
        assert (other - single).abs().max() <= bound
