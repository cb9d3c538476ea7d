"""SyncBatchNorm of mmcv.ops, MMSyncBN in configs: in one process, with and without a group, and in
one of two that see the same."""

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn import build_norm_layer
from mmcv.ops import SyncBatchNorm
from torch import nn

pytestmark = pytest.mark.stock


@pytest.fixture
def group():
    """A process group of one."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def batch_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.5, -1]))
        norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return norm


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch, and the gradient of its output."""
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 3, 5, 6, generator=rng) + offset for offset in (2, 0))


def step(norm: nn.Module, x: torch.Tensor, cotangent: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients, statistics and the output in evaluation."""
    x = x.clone().requires_grad_()
    output = norm(x)
    output.backward(cotangent)
    grads = [x.grad, norm.weight.grad, norm.bias.grad]
    return [output.detach(), *grads, *norm.buffers(), norm.eval()(x).detach()]


def test_training_step_is_batch_norms(group):
    norm = SyncBatchNorm(3)
    norm.load_state_dict(batch_norm().state_dict())
    for ours, torchs in zip(step(norm, *inputs()), step(batch_norm(), *inputs())):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


def test_starts_as_batch_norm_and_draws_nothing(group):
    """Otherwise the layers after it start with other weights than in one process."""
    before = torch.get_rng_state()
    norm = SyncBatchNorm(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(dict(norm.state_dict()), dict(nn.BatchNorm2d(3).state_dict()))


def test_no_images_leave_the_statistics_alone(group):
    norm = SyncBatchNorm(3)
    x = torch.zeros(0, 3, 5, 6, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(norm.running_var, torch.ones(3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_output_has_the_type_of_the_input(group, dtype):
    norm = SyncBatchNorm(3)
    x, _ = inputs()
    output = norm(x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), norm(x), rtol=1e-2, atol=1e-2)
    output.float().sum().backward()
    assert norm.weight.grad.dtype == torch.float32


def test_two_processes_have_the_statistics_of_both(group, monkeypatch):
    """Of two that see the same images, so that their sum is twice what one has."""
    norm = SyncBatchNorm(3)
    norm.load_state_dict(batch_norm().state_dict())
    norm.group_size = 2
    monkeypatch.setattr(dist, 'all_reduce', lambda tensor, group: tensor.mul_(2))
    x, cotangent = inputs()
    ours = step(norm, x, cotangent)
    torchs = step(batch_norm(), x.repeat(2, 1, 1, 1), cotangent.repeat(2, 1, 1, 1))
    torchs = [t.chunk(2)[0] if t.ndim == 4 else t for t in torchs]
    torchs[2:4] = [grad / 2 for grad in torchs[2:4]]  # mmcv gives the mean over the processes
    for one, both in zip(ours, torchs):
        torch.testing.assert_close(one, both, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('settings', [{}, dict(stats_mode='N', eps=1e-3)])
def test_without_a_group_it_is_pytorchs(settings):
    """mmcv's own cannot be built there."""
    _, norm = build_norm_layer(dict(type='MMSyncBN', **settings), 3)
    assert type(norm) is nn.SyncBatchNorm
    assert norm.eps == settings.get('eps', 1e-5)
    norm.load_state_dict(batch_norm().state_dict())
    expected = batch_norm()
    expected.eps = norm.eps
    for ours, torchs in zip(step(norm, *inputs()), step(expected, *inputs())):
        torch.testing.assert_close(ours, torchs)
