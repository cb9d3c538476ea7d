import pytest
import torch

from focal_mm.backbones import layers
from focal_mm.backbones.layers import Mlp

pytestmark = pytest.mark.stock


def plain(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    return mlp.fc2(mlp.act(mlp.fc1(x)))


@pytest.mark.parametrize('tokens', [1, 7, 64])
def test_mlp_in_slices_is_the_plain_one(tokens, monkeypatch):
    monkeypatch.setattr(layers, 'SLICE', 100)
    mlp, x = Mlp(6, 24), torch.randn(tokens, 3, 6, requires_grad=True)
    wanted = (x, *mlp.parameters())
    grad = torch.randn(tokens, 3, 6)
    torch.testing.assert_close(mlp(x), plain(mlp, x))
    torch.testing.assert_close(torch.autograd.grad(mlp(x), wanted, grad),
                               torch.autograd.grad(plain(mlp, x), wanted, grad))
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
    mlp.fc1 = torch.nn.Sequential(mlp.fc1)
    torch.testing.assert_close(mlp(x), plain(mlp, x))
