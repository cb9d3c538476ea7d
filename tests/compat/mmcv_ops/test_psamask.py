"""PSAMask of mmcv.ops: maps 4x5 and 3x3, windows 3x5 to 7x9, odd and even."""

from itertools import product

import pytest
import torch
from mmcv.ops import PSAMask

pytestmark = pytest.mark.stock

TYPES = ('collect', 'distribute')
# map, window
SIZES = [((4, 5), (7, 9)), ((4, 5), (3, 3)), ((3, 3), (2, 4))]


def naive(masks, psa_type, window):
    """Zhao et al., 2018, eqs. 5 and 6: the weight between each pixel and each one in its window."""
    batch, _, height, width = masks.shape
    output = masks.new_zeros(batch, height * width, height, width)
    for n, y, x, i, j in product(*map(range, (batch, height, width, *window))):
        row, column = y + i - (window[0] - 1) // 2, x + j - (window[1] - 1) // 2
        if 0 <= row < height and 0 <= column < width:
            weight = masks[n, i * window[1] + j, y, x]
            if psa_type == 'collect':
                output[n, row * width + column, y, x] = weight
            else:
                output[n, y * width + x, row, column] = weight
    return output


@pytest.mark.parametrize('psa_type', TYPES)
def test_mask_and_its_gradient_equal_mmcvs(golden, psa_type):
    masks = golden['psa_input'].requires_grad_()
    output = PSAMask(psa_type, (3, 5))(masks)
    assert torch.equal(output, golden[f'psa_{psa_type}'])
    output.backward(golden['psa_cot'])
    assert torch.equal(masks.grad, golden[f'psa_{psa_type}_grad'])


@pytest.mark.parametrize('psa_type', TYPES)
@pytest.mark.parametrize('size, window', SIZES)
def test_mask_equals_naive(device, size, window, psa_type):
    masks = torch.randn(2, window[0] * window[1], *size, device=device)
    turned = masks.contiguous(memory_format=torch.channels_last)
    layer = PSAMask(psa_type, window)
    for given in (masks, turned, masks.half(), masks.bfloat16()):
        assert torch.equal(layer(given), naive(given, psa_type, window))


@pytest.mark.parametrize('psa_type', TYPES)
@pytest.mark.parametrize('size, window', SIZES)
def test_gradient_equals_finite_differences(device, size, window, psa_type):
    masks = torch.randn(2, window[0] * window[1], *size, device=device, dtype=torch.float64)
    layer = PSAMask(psa_type, window)
    assert torch.autograd.gradcheck(layer, masks.requires_grad_(), fast_mode=True)


def test_no_images_give_an_empty_output(device):
    masks = torch.zeros(0, 9, 4, 5, device=device, requires_grad=True)
    output = PSAMask('collect', (3, 3))(masks)
    output.sum().backward()
    assert output.shape == (0, 20, 4, 5)
    assert masks.grad.shape == masks.shape
