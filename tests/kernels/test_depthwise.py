import pytest
import torch
import torch.nn.functional as F
from torch import nn

from focal_mm import kernels
from focal_mm.kernels import depthwise
from focal_mm.kernels.depthwise import (
    DepthwiseConv2d,
    depthwise_conv,
    weight_gradient,
    widen,
    widened,
)


@pytest.mark.parametrize('channels', [5, 17])
@pytest.mark.parametrize('kernel', [1, 3, 9, 11, 13, 15])
def test_kernels_of_every_width_give_the_plain_convolution(kernel, channels):
    x, weight = torch.randn(2, channels, 9, 20), torch.randn(channels, 1, kernel, kernel)
    expected = F.conv2d(x, weight, padding=kernel // 2, groups=channels)
    torch.testing.assert_close(depthwise_conv(x, weight), expected, atol=2e-5, rtol=0)


def test_widened_kernels_compute_the_same_and_are_put_back():
    net = nn.Sequential(*(DepthwiseConv2d(17, kernel) for kernel in (9, 11, 13, 15)))
    x, before = torch.randn(2, 17, 9, 20), [layer.weight for layer in net]
    net[1].weight.requires_grad_(False)
    with torch.no_grad():
        expected = net(x)
        with pytest.raises(KeyboardInterrupt), widened(net):
            assert [layer.weight.shape[2:] for layer in net] == [
                (9, 9),
                (11, 15),
                (13, 15),
                (15, 15),
            ]
            assert [layer.weight.requires_grad for layer in net] == [True, False, True, True]
            torch.testing.assert_close(net(x), expected, atol=2e-5, rtol=0)
            with kernels.use('reference'):
                torch.testing.assert_close(net(x), expected, atol=2e-5, rtol=0)
            raise KeyboardInterrupt
    assert all(layer.weight is weight for layer, weight in zip(net, before, strict=True))


def test_kernels_of_16_channels_are_not_widened():
    weight = torch.randn(16, 1, 13, 13)
    assert widen(weight) is weight


# One tile, tiles that do not fill the map, many images of one small tile, less than a kernel.
@pytest.mark.parametrize('shape', [(1, 4, 16, 16), (3, 4, 67, 41), (40, 4, 7, 7), (2, 4, 1, 2)])
@pytest.mark.parametrize('kernel', [3, 9, 13])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_weight_gradient_in_tiles_is_the_plain_one(shape, kernel, memory_format):
    x, grad = (
        torch.randn(shape, dtype=torch.double).to(memory_format=memory_format) for _ in range(2)
    )
    weight = torch.zeros(4, 1, kernel, kernel, dtype=torch.double, requires_grad=True)
    F.conv2d(x, weight, padding=kernel // 2, groups=4).backward(grad)
    torch.testing.assert_close(weight_gradient(x, grad, kernel), weight.grad)


def test_tiles_that_are_gathered_in_portions_add_up(monkeypatch):
    x, grad = (torch.randn(3, 4, 70, 20, dtype=torch.double) for _ in range(2))
    whole = weight_gradient(x, grad, 5)
    monkeypatch.setattr(depthwise, 'GATHERED_ELEMENTS', 1)
    torch.testing.assert_close(weight_gradient(x, grad, 5), whole)


def test_gradients_agree_with_finite_differences():
    x = torch.randn(2, 3, 6, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(depthwise_conv, (x, weight))


def test_autocast_convolves_in_its_precision():
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 5, 5, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        out = depthwise_conv(x, weight)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=2, groups=4).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, atol=0.1, rtol=0.02)
