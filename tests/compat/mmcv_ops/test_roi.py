"""roi_align and roi_pool of mmcv.ops: (2, 3, 9, 11) features with 0 to 7 RoIs in and around them,
and the golden (2, 6, 25, 31); float32, float64 and, computed in float32, float16 and bfloat16."""

import math

import pytest
import torch
from mmcv.ops import RoIAlign, RoIPool, roi_align, roi_pool

pytestmark = pytest.mark.stock

SIZE = (2, 3)  # bins high and wide
SCALE = 0.5


def features_and_rois(dtype=torch.float32, device='cpu'):
    features = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(
        [
            [0, 1.3, 2.1, 15.2, 13.9],  # inside
            [1, 0, 0, 22, 18],  # the whole map
            [0, -6.5, -3.2, 7.1, 9.6],  # over the upper left corner
            [1, 14.4, 9.7, 30.3, 25.1],  # over the lower right corner
            [1, 5.2, 6.1, 5.9, 6.4],  # smaller than a pixel
            [0, 40.0, 40.0, 50.0, 55.0],  # outside
            [1, 3.5, 1.5, 3.5, 12.5],  # no width
        ]
    )
    return features.to(device, dtype), rois.to(device, dtype)


def interpolate(plane, y, x):
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    return (
        (y0 + 1 - y) * (x0 + 1 - x) * plane[y0, x0]
        + (y0 + 1 - y) * (x - x0) * plane[y0, x1]
        + (y - y0) * (x0 + 1 - x) * plane[y1, x0]
        + (y - y0) * (x - x0) * plane[y1, x1]
    )


def naive_roi_align(features, rois, ratio, mode, aligned):
    output = features.new_zeros(len(rois), features.shape[1], *SIZE)
    features = features.double().numpy()
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * SCALE - 0.5 * aligned for c in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        bin_h, bin_w = height / SIZE[0], width / SIZE[1]
        grid_h, grid_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for c in range(features.shape[1]):
            for i in range(SIZE[0]):
                for j in range(SIZE[1]):
                    samples = [
                        interpolate(
                            features[int(image), c],
                            y1 + (i + (v + 0.5) / grid_h) * bin_h,
                            x1 + (j + (u + 0.5) / grid_w) * bin_w,
                        )
                        for v in range(grid_h)
                        for u in range(grid_w)
                    ]
                    if mode == 'max':
                        output[k, c, i, j] = max(samples, default=-1e4)
                    else:
                        output[k, c, i, j] = sum(samples) / max(len(samples), 1)
    return output


def naive_roi_pool(features, rois):
    _height, _width = features.shape[2:]
    output = torch.zeros(len(rois), features.shape[1], *SIZE)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * SCALE for c in (*corners[:2], corners[2] + 1, corners[3] + 1))
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                rows = slice(
                    max(math.floor(y1 + i * (y2 - y1) / SIZE[0]), 0),
                    max(math.ceil(y1 + (i + 1) * (y2 - y1) / SIZE[0]), 0),
                )
                columns = slice(
                    max(math.floor(x1 + j * (x2 - x1) / SIZE[1]), 0),
                    max(math.ceil(x1 + (j + 1) * (x2 - x1) / SIZE[1]), 0),
                )
                pixels = features[int(image), :, rows, columns].flatten(1)
                if pixels.numel() and x2 > x1 and y2 > y1:
                    output[k, :, i, j] = pixels.max(1).values
    return output


@pytest.mark.parametrize('aligned', [0, 1])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_and_its_gradient_equal_compiled_mmcv(golden, aligned, ratio):
    name = f'roi_align_aligned{aligned}_sr{ratio}'
    features = golden['feat'].requires_grad_()
    output = roi_align(features, golden['rois'], 7, 0.125, ratio, 'avg', bool(aligned))
    torch.testing.assert_close(output, golden[name], rtol=0, atol=1e-5)
    output.backward(golden[f'{name}_cot'])
    torch.testing.assert_close(features.grad, golden[f'{name}_grad'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 1, 3])
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_roi_align_equals_naive(device, dtype, mode, ratio, aligned):
    features, rois = features_and_rois(dtype, device)
    output = roi_align(features, rois, SIZE, SCALE, ratio, mode, aligned)
    expected = naive_roi_align(features.cpu(), rois.cpu(), ratio, mode, aligned)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(output.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_gradient_equals_finite_differences(device, mode, ratio, aligned):
    features, rois = features_and_rois(torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, SIZE, SCALE, ratio, mode, aligned),
        features.requires_grad_(),
        nondet_tol=1e-9,
        fast_mode=True,
    )


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_names_an_roi_that_ends_before_it_begins(mode):
    features, rois = features_and_rois()
    rois[3] = torch.tensor([0.0, 5, 1, 2, 8])
    with pytest.raises(ValueError, match=r'^roi_align: .*\[0.0, 5.0, 1.0, 2.0, 8.0\][^\n]*$'):
        roi_align(features, rois, SIZE, SCALE, 0, mode, True)


@pytest.mark.parametrize(
    'op',
    [
        lambda *args: roi_align(*args, SIZE, SCALE, 0, 'avg', True),
        lambda *args: roi_align(*args, SIZE, SCALE, 2, 'avg', False),
        lambda *args: roi_align(*args, SIZE, SCALE, 0, 'max', False),
        lambda *args: roi_pool(*args, SIZE, SCALE),
    ],
    ids=['align', 'align_2_samples', 'align_max', 'pool'],
)
@pytest.mark.parametrize(
    'roi, reason',
    [
        ([0, math.nan, 1, 8, 8], 'is not finite'),
        ([0, 1, 1, math.inf, 8], 'is not finite'),
        ([0, -math.inf, 1, math.inf, 8], 'is not finite'),
        ([math.nan, 1, 1, 8, 8], 'is not finite'),
        ([2, 1, 1, 8, 8], 'image'),
        ([-1, 1, 1, 8, 8], 'image'),
    ],
)
def test_roi_that_would_end_the_process_is_named(op, roi, reason):
    features, rois = features_and_rois()
    rois[3] = torch.tensor(roi)
    with pytest.raises(ValueError, match=rf'^roi_\w+: RoI 3 [^\n]*{reason}[^\n]*$'):
        op(features, rois)


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('side', [1e6, 1e12, 3e38])
def test_huge_roi_is_sampled_where_the_number_of_samples_is_given(mode, aligned, side):
    features, rois = features_and_rois()
    rois[3] = torch.tensor([0, -side, -side, side, side])
    output = roi_align(features, rois, SIZE, SCALE, 2, mode, aligned)
    assert output.isfinite().all() and not output[3].any()
    with pytest.raises(ValueError, match='RoI 3 .* is far larger than its map'):
        roi_align(features, rois, SIZE, SCALE, 0, mode, aligned)


def test_roi_pool_of_a_huge_roi_is_the_maximum_of_the_map():
    features, _ = features_and_rois()
    output = roi_pool(features, torch.tensor([[1.0, -1e9, -1e9, 1e9, 1e9]]), 1, SCALE)
    assert torch.equal(output[0, :, 0, 0], features[1].amax((1, 2)))


def test_roi_pool_equals_naive(device):
    features, rois = features_and_rois(device=device)
    output = roi_pool(features, rois, SIZE, SCALE)
    torch.testing.assert_close(output.cpu(), naive_roi_pool(features.cpu(), rois.cpu()))


@pytest.mark.parametrize('corners', [(4.2, 3, 3.2, 9), (9, 3, 4, 9), (3, 9, 9, 4)])
def test_roi_pool_of_an_inverted_roi_is_zero_and_has_no_gradient(device, corners):
    features, _ = features_and_rois(device=device)
    rois = torch.tensor([[0.0, *corners]], device=device)
    output = roi_pool(features.requires_grad_(), rois, SIZE, SCALE)
    output.sum().backward()
    assert not output.any() and not features.grad.any()


def test_roi_pool_gradient_equals_finite_differences(device):
    features, rois = features_and_rois(torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda x: roi_pool(x, rois, SIZE, SCALE),
        features.requires_grad_(),
        nondet_tol=1e-9,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    'layer',
    [RoIAlign(SIZE, SCALE), RoIAlign(SIZE, SCALE, pool_mode='max'), RoIPool(SIZE, SCALE)],
    ids=str,
)
class TestEveryKind:
    def test_no_rois_give_an_empty_output_and_a_zero_gradient(self, device, layer):
        features, rois = features_and_rois(device=device)
        output = layer(features.requires_grad_(), rois[:0])
        output.sum().backward()
        assert output.shape == (0, 3, *SIZE) and not features.grad.any()

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_is_close_to_float32(self, device, layer, dtype):
        features, rois = (t.to(dtype) for t in features_and_rois(device=device))
        half = features.clone().requires_grad_()
        full = features.float().requires_grad_()
        with torch.autocast(device, dtype):
            output = layer(half, rois)
        expected = layer(full, rois.float())
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)
        output.float().sum().backward()
        expected.sum().backward()
        # In max mode mmcv stores the sampling positions in half precision.
        torch.testing.assert_close(half.grad.float(), full.grad, rtol=2e-2, atol=5e-2)

    def test_memory_format_does_not_matter(self, device, layer):
        features, rois = features_and_rois(device=device)
        rearranged = features.contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer(rearranged, rois), layer(features, rois))
