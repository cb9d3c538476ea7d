import pytest
import torch
from torch import nn

from focal_mm.backbones.base import Mlp
from focal_mm.kernels import memory
from focal_mm.kernels.linear import mlp as mlp_kernel
from focal_mm.kernels.linear import (
    mlp_reference,
    multiply_linear,
    multiply_linear_reference,
    project,
)


def plain(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    return mlp.fc2(mlp.act(mlp.fc1(x)))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('tokens, dim, out_dim', [(3, 8, 24), (600, 8, 24), (600, 24, 8)])
def test_linear_layer_is_that_of_pytorch(tokens, dim, out_dim, bias):
    layer, x = nn.Linear(dim, out_dim, bias), torch.randn(2, tokens, dim, requires_grad=True)
    wanted, grad = (x, *layer.parameters()), torch.randn(2, tokens, out_dim)
    torch.testing.assert_close(project(layer, x), layer(x))
    # Of a weight it is a sum of 1200 products, in another order.
    torch.testing.assert_close(
        torch.autograd.grad(project(layer, x), wanted, grad),
        torch.autograd.grad(layer(x), wanted, grad),
        atol=2e-4,
        rtol=1e-5,
    )
    with torch.no_grad():
        torch.testing.assert_close(project(layer, x), layer(x))


@pytest.mark.parametrize('learned', ['weight', 'bias', 'x'])
def test_linear_layer_has_the_gradients_that_are_asked_for(learned):
    layer, x = nn.Linear(8, 24).requires_grad_(False), torch.randn(600, 8)
    tensor = dict(layer.named_parameters(), x=x)[learned].requires_grad_()
    grad, expected = (
        torch.autograd.grad(out.square().sum(), tensor) for out in (project(layer, x), layer(x))
    )
    torch.testing.assert_close(grad, expected)


def test_linear_layer_under_autocast_is_in_its_precision():
    layer, x = nn.Linear(8, 24), torch.randn(600, 8)
    with torch.autocast('cpu', torch.bfloat16):
        out = project(layer, x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float
    torch.testing.assert_close(out.float(), layer(x), atol=0.02, rtol=0.02)


@pytest.mark.parametrize('tokens', [1, 7, 64])
def test_mlp_in_slices_is_the_plain_one(tokens, monkeypatch):
    monkeypatch.setattr(memory, 'ELEMENTS', 100)
    mlp, x = Mlp(6, 24), torch.randn(tokens, 3, 6, requires_grad=True)
    wanted = (x, *mlp.parameters())
    grad = torch.randn(tokens, 3, 6)
    torch.testing.assert_close(mlp(x), plain(mlp, x))
    torch.testing.assert_close(
        torch.autograd.grad(mlp(x), wanted, grad), torch.autograd.grad(plain(mlp, x), wanted, grad)
    )
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), plain(mlp, x))


def test_mlp_agrees_with_finite_differences():
    mlp = Mlp(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)


def test_mlp_keeps_its_dropout_and_activation():
    x = torch.randn(50, 8)
    assert (Mlp(8, 8, drop=0.5).train()(x) == 0).float().mean() > 0.3
    mlp = Mlp(8, 8, act_cfg=dict(type='ReLU'))
    torch.testing.assert_close(mlp(x), plain(mlp, x))


def test_mlp_under_autocast_is_in_its_precision():
    mlp, x = Mlp(8, 16), torch.randn(50, 8)
    with torch.autocast('cpu', torch.bfloat16):
        out = mlp(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert mlp.fc1.weight.grad.dtype == torch.float
    torch.testing.assert_close(out.float(), plain(mlp, x), atol=0.02, rtol=0.02)


def test_part_of_an_mlp_may_be_replaced():
    mlp, x = Mlp(8, 8), torch.randn(5, 8)
    mlp.fc1 = nn.Sequential(mlp.fc1)
    torch.testing.assert_close(mlp(x), plain(mlp, x))


def equal_with_gradients(kernel, reference, *tensors):
    tensors = tuple(t if t is None else t.requires_grad_() for t in tensors)
    out, expected = kernel(*tensors), reference(*tensors)
    wanted, grad = [t for t in tensors if t is not None], torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out, wanted, grad)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, wanted, grad), atol=2e-4, rtol=1e-4
    )
    assert all(part.is_contiguous() for part in found)


@pytest.mark.parametrize('tokens', [5, 1500])
@pytest.mark.parametrize('bias', [True, False])
def test_norm_and_mlp_are_the_plain_ones(tokens, bias, monkeypatch):
    monkeypatch.setattr(memory, 'ELEMENTS', 100)
    sizes = (2, tokens, 6), (24, 6), (24,), (6, 24), (6,), (6,), (6,)
    values = [torch.randn(size) for size in sizes]
    if not bias:
        values[2] = values[4] = values[6] = None
    equal_with_gradients(mlp_kernel, mlp_reference, *values)


@pytest.mark.parametrize('tokens', [5, 700])
@pytest.mark.parametrize('bias', [True, False])
def test_layer_of_a_product_is_the_plain_one(tokens, bias):
    x, y, weight = torch.randn(2, tokens, 8), torch.randn(2, tokens, 8), torch.randn(24, 8)
    shift = torch.randn(24) if bias else None
    equal_with_gradients(multiply_linear, multiply_linear_reference, x, y, weight, shift)


@pytest.mark.parametrize('kernel', [mlp_kernel, multiply_linear])
def test_kernels_of_linear_layers_can_be_differentiated_twice(kernel):
    sizes = {
        mlp_kernel: ((4, 3), (5, 3), (5,), (3, 5), (3,), (3,), (3,)),
        multiply_linear: ((4, 3), (4, 3), (5, 3), (5,)),
    }[kernel]
    values = [torch.randn(size, dtype=torch.double, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(kernel, values)
    assert torch.autograd.gradgradcheck(kernel, values)
