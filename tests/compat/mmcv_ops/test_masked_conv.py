"""MaskedConv2d of mmcv.ops: (1, 3, 6, 7) features, kernels 1x1 to 3x5; float32, float64 and, in
autocast, float16 and bfloat16."""

import pytest
import torch
from mmcv.ops import MaskedConv2d
from torch.nn.functional import conv2d

from focal_mm.compat import mmcv_ops

pytestmark = pytest.mark.stock


def test_patches_equal_mmcvs(golden):
    col = torch.zeros_like(golden['masked_col'])
    mmcv_ops.masked_im2col_forward(
        *(golden[f'masked_{name}'] for name in ('im', 'h', 'w')), col, 3, 3, 1, 1
    )
    assert torch.equal(col, golden['masked_col'])


@pytest.mark.parametrize('kernel', [(1, 1), (3, 3), (3, 5)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_a_convolution_where_the_mask_is_positive(device, dtype, kernel):
    padding = tuple(side // 2 for side in kernel)
    layer = MaskedConv2d(3, 4, kernel, padding=padding).to(device, dtype)
    x = torch.randn(1, 3, 6, 7, device=device, dtype=dtype)
    mask = torch.randn(1, 6, 7, device=device)
    expected = conv2d(x, layer.weight, layer.bias, padding=padding)
    assert torch.equal(layer(x), expected)  # mmcv's own road, for no mask
    torch.testing.assert_close(layer(x, mask), expected * (mask > 0), rtol=1e-4, atol=1e-5)


def test_order_of_the_memory_does_not_matter(device):
    layer = MaskedConv2d(3, 4, 3, padding=1).to(device)
    x = torch.randn(1, 3, 6, 7, device=device)
    mask = torch.ones(1, 6, 7, device=device)
    turned = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(turned, mask), layer(x, mask))


def test_nothing_marked_gives_zeros(device):
    layer = MaskedConv2d(3, 4, 3, padding=1).to(device)
    x = torch.randn(1, 3, 6, 7, device=device)
    assert not layer(x, torch.zeros(1, 6, 7, device=device)).any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_gives_the_type_of_the_features(device, dtype):
    layer = MaskedConv2d(3, 4, 3, padding=1).to(device)
    x, mask = torch.randn(1, 3, 6, 7, device=device), torch.ones(1, 6, 7, device=device)
    for features in (x, x.to(dtype)):
        with torch.autocast(device, dtype):
            output = layer(features, mask)
        assert output.dtype == features.dtype
        torch.testing.assert_close(output.float(), layer(x, mask), rtol=5e-2, atol=5e-2)


def test_a_mark_outside_of_the_output_is_an_error():
    layer = MaskedConv2d(3, 4, 3)
    with pytest.raises(IndexError, match='out of bounds'):
        layer(torch.randn(1, 3, 6, 7), torch.ones(1, 6, 7))
