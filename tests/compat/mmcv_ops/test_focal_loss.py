"""sigmoid_focal_loss of mmcv.ops: (0 to 6, 4) logits, targets 0 to 4 (background), float32, float64
and, computed in float32, float16 and bfloat16."""

import math

import pytest
import torch
from mmcv.ops import SigmoidFocalLoss, sigmoid_focal_loss

pytestmark = pytest.mark.stock


def logits_and_targets(dtype=torch.float32, device='cpu'):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3
    return logits.to(device, dtype), torch.tensor([0, 3, 4, 1, 4, 2], device=device)


def naive(logits, targets, gamma, alpha, weight=None):
    loss = torch.zeros(logits.shape, dtype=torch.float64)
    for n, target in enumerate(targets.tolist()):
        for c, logit in enumerate(logits[n].tolist()):
            p = 1 / (1 + math.exp(-logit))
            loss[n, c] = (
                -alpha * (1 - p) ** gamma * math.log(p)
                if c == target
                else -(1 - alpha) * p**gamma * math.log(1 - p)
            )
            if weight is not None and target < len(weight):
                loss[n, c] *= weight[target]
    return loss


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
@pytest.mark.parametrize('weight', [None, [0.5, 2.0, 1.0, 0.0]])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_naive(device, dtype, weight, gamma, alpha):
    logits, targets = logits_and_targets(dtype, device)
    weights = None if weight is None else logits.new_tensor(weight)
    loss = sigmoid_focal_loss(logits, targets, gamma, alpha, weights, 'none')
    assert loss.dtype == dtype
    torch.testing.assert_close(
        loss.double().cpu(), naive(logits, targets, gamma, alpha, weight), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    'reduction, expected', [('sum', lambda loss: loss.sum()), ('mean', lambda loss: loss.sum() / 6)]
)
def test_reductions(device, reduction, expected):
    logits, targets = logits_and_targets(device=device)
    loss = SigmoidFocalLoss(2.0, 0.25, reduction=reduction)(logits, targets)
    torch.testing.assert_close(
        loss.double().cpu(), expected(naive(logits, targets, 2.0, 0.25)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('reduction', ['none', 'sum', 'mean'])
@pytest.mark.parametrize('weight', [None, [0.5, 2.0, 1.0, 0.0]])
def test_gradient_equals_finite_differences(device, weight, reduction):
    logits, targets = logits_and_targets(torch.float64, device)
    weights = None if weight is None else logits.new_tensor(weight)
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, targets, 2.0, 0.25, weights, reduction),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize('logit', [-200.0, 200.0])
def test_saturated_logits_give_finite_losses_and_gradients(device, logit):
    logits = torch.full((1, 2), logit, device=device, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0], device=device), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


def test_no_rows_give_no_loss(device):
    logits = torch.zeros(0, 4, device=device, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long, device=device)
    sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, 'sum').backward()
    assert logits.grad.shape == (0, 4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float32(device, dtype):
    logits, targets = logits_and_targets(dtype, device)
    loss = sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, 'none')
    assert loss.dtype == dtype
    expected = sigmoid_focal_loss(logits.float(), targets, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss.float(), expected, rtol=1e-2, atol=1e-3)


def test_a_target_above_the_number_of_classes_is_named(device):
    logits, _ = logits_and_targets(device=device)
    with pytest.raises(ValueError, match='target 9 .* number of classes, 4'):
        sigmoid_focal_loss(logits, torch.full((6,), 9, device=device))
