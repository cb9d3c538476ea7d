"""deform_roi_pool of mmcv.ops: (2, 3, 9, 11) features with 0 to 100 RoIs in and around them;
float32, float64 and, computed in float32, float16 and bfloat16."""

import pytest
import torch
from mmcv.ops import (
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    RoIAlign,
    deform_roi_pool,
)

pytestmark = pytest.mark.stock

SIZE = (2, 3)  # bins high and wide
SCALE = 0.5


def operands(golden, dtype=torch.float32):
    """Features, RoIs and offsets."""
    return [golden[f'drp_{name}'].to(dtype) for name in ('features', 'rois', 'offset')]


@pytest.mark.parametrize('with_offset', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_pooling_and_its_gradients_equal_mmcvs(golden, ratio, with_offset):
    features, rois, offset = operands(golden)
    features.requires_grad_(), offset.requires_grad_()
    output = deform_roi_pool(
        features, rois, offset if with_offset else None, SIZE, SCALE, ratio, 0.1
    )
    name = f'drp_sr{ratio}_offset{int(with_offset)}'
    torch.testing.assert_close(output, golden[name], rtol=0, atol=1e-5)
    output.backward(golden['drp_cot'])
    torch.testing.assert_close(features.grad, golden[f'{name}_gfeatures'], rtol=0, atol=1e-5)
    if with_offset:
        torch.testing.assert_close(offset.grad, golden[f'{name}_goffset'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('ratio', [0, 3])
def test_pooling_without_offset_is_roi_align(golden, ratio):
    """Its definition: Dai et al., 2017, eq. 5, on bilinear samples."""
    features, rois, offset = operands(golden, torch.float64)
    rois = rois[rois[:, 3] >= rois[:, 1]]
    expected = RoIAlign(SIZE, SCALE, ratio, aligned=True)(features, rois)
    for given in (None, offset[: len(rois)] * 0):
        output = deform_roi_pool(features, rois, given, SIZE, SCALE, ratio)
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize('ratio', [0, 3])
def test_offset_moves_a_bin_by_its_share_of_the_roi(golden, ratio):
    """Dai et al., 2017, eq. 6."""
    features, rois, _ = operands(golden, torch.float64)
    rois = rois[:2]
    size = rois[:, 3:] - rois[:, 1:3]
    offset = torch.tensor([0.7, -0.4], device=rois.device, dtype=rois.dtype)  # x, y
    moved = rois.clone()
    moved[:, 1:] += (0.2 * offset * size).repeat(1, 2)
    torch.testing.assert_close(
        deform_roi_pool(
            features, rois, offset[:, None, None].expand(2, 2, *SIZE), SIZE, SCALE, ratio, 0.2
        ),
        deform_roi_pool(features, moved, None, SIZE, SCALE, ratio),
    )


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradients_equal_finite_differences(golden, ratio):
    """Of samples within the map; further out, mmcv continues the gradient of its border."""
    features, _, offset = operands(golden, torch.float64)
    rois = torch.tensor([[0, 3.3, 4.1, 15.2, 13.9], [1, 5, 4, 17.1, 14.8]]).to(features)
    offset = offset[:2].clamp(-1, 1)
    tensors = features.requires_grad_(), offset.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, move: deform_roi_pool(x, rois, move, SIZE, SCALE, ratio, 0.1),
        tensors,
        fast_mode=True,
        nondet_tol=1e-9,
    )


def test_many_rois_are_the_rois_one_by_one(golden):
    features, rois, offset = operands(golden)
    many, moves = rois.repeat(11, 1), offset.repeat(11, 1, 1, 1)
    output = deform_roi_pool(features, many, moves, SIZE, SCALE)
    torch.testing.assert_close(
        output, deform_roi_pool(features, rois, offset, SIZE, SCALE).repeat(11, 1, 1, 1)
    )


def test_order_of_the_memory_does_not_matter(golden):
    features, rois, offset = operands(golden)
    turned = [t.contiguous(memory_format=torch.channels_last) for t in (features, offset)]
    torch.testing.assert_close(
        deform_roi_pool(turned[0], rois, turned[1], SIZE, SCALE),
        deform_roi_pool(features, rois, offset, SIZE, SCALE),
    )


def test_no_rois_give_an_empty_output(golden):
    features, rois, offset = operands(golden)
    features.requires_grad_(), offset.requires_grad_()
    output = deform_roi_pool(features, rois[:0], offset[:0], SIZE, SCALE)
    assert output.shape == (0, 3, *SIZE)
    output.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize(
    'roi, reason',
    [
        ([0, 1, 2, float('nan'), 4], 'is not finite'),
        ([2, 1, 2, 3, 4], 'is of an image that is not among 2'),
        ([0, 0, 0, 1e7, 1e7], 'is far larger than its map'),
    ],
)
def test_roi_that_would_end_the_process_is_named(roi, reason):
    with pytest.raises(ValueError, match=f'^deform_roi_pool: RoI 1 .* {reason}$'):
        deform_roi_pool(torch.zeros(2, 3, 9, 11), torch.tensor([[0, 1, 2, 3, 4], roi]), None, SIZE)


@pytest.mark.parametrize('layer', [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_layers_train_under_autocast(golden, device, dtype, layer):
    features, rois, _ = operands(golden)
    layer = layer(SIZE, 3, 8, SCALE).to(device)
    for name, parameter in layer.named_parameters():
        if name.endswith('weight'):
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.autocast(device, dtype):
        output = layer(features, rois)
        low = layer(features.to(dtype), rois)
    assert low.dtype == dtype
    for given in (output, low):
        torch.testing.assert_close(given.float(), layer(features, rois), rtol=5e-2, atol=5e-2)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert layer.offset_fc[-1].weight.grad.any()
