import pytest
import torch

from focal_mm.kernels.gated_context import gated_context

pytestmark = pytest.mark.stock


@pytest.mark.parametrize('way', [torch.bfloat16, torch.half, 'autocast'])
def test_half_precision_without_gradients_is_rounded_once(way):
    torch.manual_seed(0)
    exact = [torch.randn(shape) for shape in ((2, 24, 9, 7), (2, 3, 9, 7), (24, 1, 3, 3))]
    exact.append(torch.randn(24, 1, 13, 13))
    dtype = torch.bfloat16 if way == 'autocast' else way
    half = [tensor.to(dtype) for tensor in exact]
    tensors = exact if way == 'autocast' else half
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16, enabled=way == 'autocast'):
            found = gated_context(*tensors)
        expected = gated_context(*(tensor.float() for tensor in tensors)).to(dtype)
    assert torch.equal(found, expected)
