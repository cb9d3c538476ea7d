"""Multi-scale deformable attention of mmcv.ops: 2 images, 5 queries, 2 heads of 4 values, levels
(6, 8), (3, 4), (1, 2), 3 points in and outside the maps; float32, float64 and, computed in float32,
float16 and bfloat16."""

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)

pytestmark = pytest.mark.stock

LEVELS = [(6, 8), (3, 4), (1, 2)]


def operands(dtype=torch.float32, device='cpu', queries=5):
    """Value, sampling locations and attention weights."""
    rng = torch.Generator().manual_seed(0)
    tensors = (
        torch.randn(2, sum(h * w for h, w in LEVELS), 2, 4, generator=rng),
        torch.rand(2, queries, 2, 3, 3, 2, generator=rng) * 1.6 - 0.3,
        torch.rand(2, queries, 2, 3, 3, generator=rng),
    )
    return [t.to(device, dtype) for t in tensors]


def attend(value, locations, weights, im2col_step=64):
    shapes = torch.tensor(LEVELS, device=value.device)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    return MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations, weights, im2col_step
    )


def reference(value, locations, weights):
    return multi_scale_deformable_attn_pytorch(value, torch.tensor(LEVELS), locations, weights)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('im2col_step', [1, 64])
def test_attention_and_its_gradients_equal_the_reference_of_mmcv(device, dtype, im2col_step):
    tensors = [t.requires_grad_() for t in operands(dtype, device)]
    output = attend(*tensors, im2col_step)
    expected = reference(*tensors)
    assert output.shape == (2, 5, 8) and output.dtype == dtype
    torch.testing.assert_close(output, expected)
    cotangent = torch.randn_like(output)
    for grad, expected_grad in zip(
        torch.autograd.grad(output, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    ):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_gradients_equal_finite_differences(device):
    tensors = [t.requires_grad_() for t in operands(torch.float64, device)]
    assert torch.autograd.gradcheck(attend, tensors, nondet_tol=1e-9, fast_mode=True)


def test_no_queries_give_an_empty_output(device):
    tensors = [t.requires_grad_() for t in operands(device=device, queries=0)]
    output = attend(*tensors)
    output.sum().backward()
    assert output.shape == (2, 0, 8) and not tensors[0].grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_float32(device, dtype):
    value, locations, weights = (t.requires_grad_() for t in operands(dtype, device))
    output = attend(value, locations, weights)
    assert output.dtype == dtype
    expected = attend(*(t.float() for t in (value, locations, weights)))
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)
    output.float().sum().backward()
    assert value.grad.dtype == locations.grad.dtype == weights.grad.dtype == dtype
