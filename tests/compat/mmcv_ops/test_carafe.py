"""carafe and carafe_naive of mmcv.ops: (1 or 2, 6, 5, 4) features, kernels 1 to 5, scales 1 to 3,
1 to 3 groups; float32, float64 and, computed in float32, float16 and bfloat16."""

from itertools import product

import pytest
import torch
from mmcv.ops import CARAFE, CARAFENaive, carafe
from mmcv.ops.carafe import CARAFEPack

pytestmark = pytest.mark.stock

# kernel, groups, scale
SETTINGS = [(3, 2, 2), (5, 1, 2), (1, 3, 3), (3, 6, 1)]


def operands(kernel, groups, scale, device, dtype=torch.float64, batch=1):
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 6, 5, 4, generator=rng)
    masks = torch.rand(batch, groups * kernel**2, 5 * scale, 4 * scale, generator=rng)
    return features.to(device, dtype), masks.to(device, dtype)


def naive(features, masks, kernel, groups, scale):
    """Wang et al., 2019, eq. 4."""
    batch, channels, height, width = features.shape
    output = features.new_zeros(batch, channels, height * scale, width * scale)
    reach = kernel // 2
    for n, c, y, x in product(*map(range, output.shape)):
        group = c // (channels // groups)
        for i, j in product(range(kernel), repeat=2):
            row, column = y // scale + i - reach, x // scale + j - reach
            if 0 <= row < height and 0 <= column < width:
                weight = masks[n, group * kernel**2 + i * kernel + j, y, x]
                output[n, c, y, x] += weight * features[n, c, row, column]
    return output


def test_carafe_and_its_gradients_equal_mmcvs(golden):
    features = golden['carafe_features'].requires_grad_()
    masks = golden['carafe_masks'].requires_grad_()
    output = carafe(features, masks, 3, 2, 2)
    torch.testing.assert_close(output, golden['carafe'], rtol=0, atol=1e-5)
    output.backward(golden['carafe_cot'])
    torch.testing.assert_close(features.grad, golden['carafe_gfeatures'], rtol=0, atol=1e-5)
    torch.testing.assert_close(masks.grad, golden['carafe_gmasks'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('layer', [CARAFE, CARAFENaive])
@pytest.mark.parametrize('settings', SETTINGS)
def test_carafe_equals_naive(device, settings, layer):
    features, masks = operands(*settings, device)
    expected = naive(features.cpu(), masks.cpu(), *settings).to(device)
    torch.testing.assert_close(layer(*settings)(features, masks), expected)


@pytest.mark.parametrize('settings', SETTINGS)
def test_gradients_equal_finite_differences(device, settings):
    tensors = [t.requires_grad_() for t in operands(*settings, device)]
    assert torch.autograd.gradcheck(lambda *t: carafe(*t, *settings), tensors, fast_mode=True)


def test_order_of_the_memory_does_not_matter(device):
    features, masks = (t.requires_grad_() for t in operands(3, 2, 2, device, batch=2))
    expected = carafe(features, masks, 3, 2, 2)
    others = [t.detach().contiguous(memory_format=torch.channels_last) for t in (features, masks)]
    output = carafe(*(t.requires_grad_() for t in others), 3, 2, 2)
    torch.testing.assert_close(output, expected)
    grads = torch.autograd.grad(output.square().sum(), others)
    for grad, like in zip(grads, torch.autograd.grad(expected.square().sum(), (features, masks))):
        torch.testing.assert_close(grad, like)


def test_no_images_give_an_empty_output(device):
    """A mask head without RoIs."""
    features, masks = (t[:0].requires_grad_() for t in operands(3, 2, 2, device))
    output = carafe(features, masks, 3, 2, 2)
    assert output.shape == (0, 6, 10, 8)
    output.sum().backward()
    assert features.grad.shape == features.shape


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_layer_trains_under_autocast(device, dtype):
    layer = CARAFEPack(4, 2, up_kernel=3, compressed_channels=8).to(device)
    x = torch.randn(2, 4, 5, 6, device=device)
    with torch.autocast(device, dtype):
        output = layer(x)
    torch.testing.assert_close(output.float(), layer(x), rtol=5e-2, atol=5e-2)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())
