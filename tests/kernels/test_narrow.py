import pytest
import torch

from focal_mm.kernels.linear import PatchConv2d
from focal_mm.kernels.narrow import NarrowConv2d


# Each layer with the narrowest map that it takes. Values are wrong in maps of 9 rows or more.
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half])
@pytest.mark.parametrize('more', [0, 1, 2, 4])
@pytest.mark.parametrize(
    'layer, width',
    [
        (lambda: NarrowConv2d(48, 48, 3, 2, 1), 1),
        (lambda: NarrowConv2d(48, 48, 3, 2, 1, bias=False), 1),
        (lambda: NarrowConv2d(48, 48, 3, 2, 1, groups=48), 1),
        (lambda: NarrowConv2d(48, 48, 3, 1, 'same'), 1),
        (lambda: NarrowConv2d(3, 32, 7, 4, 3), 1),
        (lambda: NarrowConv2d(3, 32, 7, 4, 2), 3),
        (lambda: NarrowConv2d(3, 32, 7, 4, 2, padding_mode='reflect'), 3),
        (lambda: PatchConv2d(48, 48, 2), 2),
    ],
)
def test_maps_and_gradients_in_half_precision_are_those_in_single(layer, width, more, dtype):
    layer = layer().to(dtype)
    x = torch.randn(2, layer.in_channels, 50, width + more, dtype=dtype)

    def run(dtype):
        net, given = layer.to(dtype), x.to(dtype, copy=True).requires_grad_()
        out = net(given)
        return [out, *torch.autograd.grad(out.square().sum(), [given, *net.parameters()])]

    for half, single in zip(run(dtype), run(torch.float), strict=True):
        assert half.dtype == dtype
        assert (half - single).abs().max() <= 0.02 * single.abs().max()


@pytest.mark.parametrize('compiled', [False, True])
def test_autocast_takes_single_precision_too(compiled):
    layer, x = NarrowConv2d(32, 48, 3, 2, 1), torch.randn(2, 32, 17, 1)
    run = torch.compile(layer, backend='aot_eager', fullgraph=True) if compiled else layer
    expected = layer(x)
    with torch.autocast('cpu', torch.bfloat16):
        out = run(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
