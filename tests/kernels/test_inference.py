import pytest
import torch
import torch.nn.functional as F
from torch import nn

from focal_mm.kernels import memory
from focal_mm.kernels.inference import apply_folded, by_bands, is_folded


def trained(*layers: nn.Module) -> nn.Sequential:
    """Layers in eval mode whose norms have seen other statistics than 0 and 1."""
    net = nn.Sequential(*layers)
    for norm in (layer for layer in net if isinstance(layer, nn.BatchNorm2d)):
        for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            value.copy_(torch.rand_like(value) + 0.5)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize('bias', [True, False])
def test_folded_norms_give_the_same_map(bias):
    net = trained(
        nn.Conv2d(3, 8, 3, 2, 1, bias=bias), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(2, 3, 9, 7)
    assert is_folded(net)
    torch.testing.assert_close(apply_folded(net, x), net(x))


@pytest.mark.parametrize(
    'change',
    [
        lambda net: net[0].register_forward_hook(lambda *_: None),
        lambda net: net[1].train(),
        lambda net: net.register_forward_hook(lambda *_: None),
        lambda net: setattr(net, '2', nn.SiLU()),
        lambda net: net[0].requires_grad_(True),
    ],
    ids=['hook', 'statistics of the batch', 'hook on all', 'activation', 'gradient'],
)
def test_changed_layers_are_called(change):
    net = trained(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU())
    change(net)
    assert not is_folded(net)
    x = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(apply_folded(net, x), net(x))


@pytest.mark.parametrize('elements', [1, 64, 1 << 20])
def test_bands_of_a_map_with_neighbors_are_the_whole_map(elements, monkeypatch):
    monkeypatch.setattr(memory, 'ELEMENTS', elements)
    kernels = torch.randn(2, 1, 1, 3, 3)

    def step(x: torch.Tensor) -> tuple[torch.Tensor]:
        x = x.permute(0, 3, 1, 2)
        for kernel in kernels:
            x = F.conv2d(x, kernel, padding=1)
        return (F.avg_pool2d(x, 2).permute(0, 2, 3, 1),)

    x = torch.randn(2, 14, 6, 1)
    (found,) = by_bands(step, 1, x, shrink=2, halo=1)
    torch.testing.assert_close(found, step(x)[0])


def test_bands_are_written_to_memory_that_is_given(monkeypatch):
    monkeypatch.setattr(memory, 'ELEMENTS', 16)
    x, out = torch.randn(1, 8, 4, 2), torch.zeros(1, 9, 5, 2)
    by_bands(lambda x: (x * 2,), 2, x, outs=[out[:, :8, :4]])
    torch.testing.assert_close(out, F.pad(x * 2, (0, 0, 0, 1, 0, 1)))
