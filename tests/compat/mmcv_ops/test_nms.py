"""nms, soft_nms, batched_nms and nms_match of mmcv.ops: 0 to 300 boxes, float32 and float64; nms
also float16 and bfloat16, nms_match float16; numpy arrays."""

import math

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, nms, nms_match, soft_nms

pytestmark = pytest.mark.stock


NMS = dict(type='nms', iou_threshold=0.5)


def random_boxes(count, dtype=torch.float32, device='cpu', whole=False):
    """Boxes that overlap; ``whole`` ones have whole corners, so that IoUs hit thresholds."""
    rng = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=rng) * 30
    boxes = torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=rng) * 20], 1)
    scores = torch.rand(count, generator=rng)
    return (boxes.round() if whole else boxes).to(device, dtype), scores.to(device, dtype)


def iou(a, b, offset):
    f = np.float32
    width = max(f(0), min(a[2], b[2]) - max(a[0], b[0]) + f(offset))
    height = max(f(0), min(a[3], b[3]) - max(a[1], b[1]) + f(offset))
    area = [(c[2] - c[0] + f(offset)) * (c[3] - c[1] + f(offset)) for c in (a, b)]
    return width * height / (area[0] + area[1] - width * height)


def naive_nms(boxes, scores, threshold, offset):
    boxes = boxes.cpu().numpy()
    kept = []
    for i in scores.cpu().argsort(descending=True, stable=True).tolist():
        if all(iou(boxes[j], boxes[i], offset) <= np.float32(threshold) for j in kept):
            kept.append(i)
    return kept


def naive_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """Bodla et al., 2017, figure 2."""
    boxes, scores = boxes.numpy(), dict(enumerate(scores.tolist()))
    kept = []
    while scores:
        best = max(scores, key=scores.get)
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            overlap = float(iou(boxes[best], boxes[i], offset))
            scores[i] *= dict(
                naive=float(overlap < threshold),
                linear=1 - overlap if overlap >= threshold else 1,
                gaussian=math.exp(-(overlap**2) / sigma),
            )[method]
            if scores[i] < min_score:
                del scores[i]
    return kept


@pytest.mark.parametrize('threshold', [3, 5, 7])
def test_nms_equals_compiled_mmcv(golden, threshold):
    dets, keep = nms(golden['boxes'], golden['scores'], threshold / 10)
    assert torch.equal(keep, golden[f'nms_{threshold}_keep'])
    assert torch.equal(dets, golden[f'nms_{threshold}_dets'])


def test_nms_with_score_threshold_and_max_num_equals_compiled_mmcv(golden):
    _, keep = nms(golden['boxes'], golden['scores'], 0.5, score_threshold=0.3, max_num=20)
    assert torch.equal(keep, golden['nms_score03_max20_keep'])


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_nms_equals_naive(device, dtype, whole, threshold, offset):
    boxes, scores = random_boxes(60, dtype, device, whole)
    dets, keep = nms(boxes, scores, threshold, offset=offset)
    assert keep.tolist() == naive_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


@pytest.mark.parametrize('threshold, kept', [(0.3, [0, 1]), (0.29, [0])])
def test_nms_keeps_an_iou_equal_to_the_threshold(device, threshold, kept):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]], device=device)  # IoU 0.3
    assert nms(boxes, torch.tensor([0.9, 0.8], device=device), threshold)[1].tolist() == kept


def test_nms_keeps_the_order_of_equal_scores(device):
    boxes = torch.arange(40.0, device=device)[:, None] * 10 + torch.tensor(
        [0.0, 0, 5, 5], device=device
    )
    assert nms(boxes, torch.ones(40, device=device), 0.5)[1].tolist() == list(range(40))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_takes_half_precision(device, dtype):
    boxes, scores = random_boxes(60, dtype, device, whole=True)
    dets, keep = nms(boxes, scores, 0.5)
    assert dets.dtype == dtype
    assert keep.tolist() == nms(boxes.float(), scores.float(), 0.5)[1].tolist()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('corner', [0, 3])
def test_box_that_is_not_finite_is_kept_and_suppresses_none(device, value, corner):
    boxes, scores = random_boxes(20, device=device)
    best = int(scores.argmax())
    boxes[best, corner] = value
    others = torch.arange(20, device=device) != best
    kept = nms(boxes, scores, 0.5)[1].tolist()
    expected = others.nonzero()[:, 0][nms(boxes[others], scores[others], 0.5)[1]].tolist()
    assert kept == [best, *expected]
    for op in (soft_nms, lambda *args: batched_nms(args[0], args[1], others.long(), NMS)):
        op(boxes, scores, 0.5)


def test_nms_takes_numpy_arrays():
    boxes, scores = random_boxes(60)
    dets, keep = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and keep.tolist() == naive_nms(boxes, scores, 0.5, 0)


@pytest.mark.parametrize('op', [nms, soft_nms])
def test_no_boxes_give_no_boxes(device, op):
    dets, keep = op(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)
    assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.int64


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_compiled_mmcv(golden, method):
    dets, keep = soft_nms(golden['boxes'], golden['scores'], method=method)
    assert torch.equal(keep, golden[f'soft_nms_{method}_keep'])
    torch.testing.assert_close(dets, golden[f'soft_nms_{method}_dets'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize(
    'threshold, sigma, min_score, offset',
    [(0.3, 0.5, 1e-3, 0), (0.5, 0.3, 0.05, 1), (0.2, 0.8, 0.2, 0)],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_soft_nms_equals_naive(dtype, method, threshold, sigma, min_score, offset):
    boxes, scores = random_boxes(60, dtype)
    arguments = threshold, sigma, min_score, method, offset
    dets, keep = soft_nms(boxes, scores, *arguments)
    expected = naive_soft_nms(boxes, scores, *arguments)
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[keep])
    torch.testing.assert_close(
        dets[:, 4], torch.tensor([s for _, s in expected], dtype=dtype), rtol=0, atol=1e-6
    )


def test_soft_nms_puts_the_last_boxes_in_the_places_of_dropped_ones():
    """It decides the order of equal scores."""
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 3 + [[20, 0, 29, 9], [40, 0, 49, 9]])
    _, keep = soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.5, 0.5]), method='naive')
    assert keep.tolist() == [0, 4, 3]


def test_soft_nms_takes_boxes_that_need_a_gradient():
    boxes, scores = random_boxes(10)
    assert soft_nms(boxes.requires_grad_(), scores.requires_grad_())[0].shape[1] == 5


def test_batched_nms_equals_compiled_mmcv(golden):
    dets, keep = batched_nms(
        golden['boxes'], golden['scores'], golden['classes'], dict(type='nms', iou_threshold=0.6)
    )
    assert torch.equal(keep, golden['batched_nms_6_keep'])
    assert torch.equal(dets, golden['batched_nms_6_dets'])


def test_batched_nms_suppresses_within_a_class_only(device):
    boxes, scores = random_boxes(60, device=device)
    classes = torch.arange(60, device=device) % 3
    _, keep = batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.4))
    expected = [3 * i + c for c in range(3) for i in naive_nms(boxes[c::3], scores[c::3], 0.4, 0)]
    assert sorted(keep.tolist()) == sorted(expected)
    assert scores[keep].tolist() == sorted(scores[keep].tolist(), reverse=True)


def test_class_agnostic_batched_nms_is_nms(device):
    boxes, scores = random_boxes(60, device=device)
    classes = torch.arange(60, device=device) % 3
    _, keep = batched_nms(
        boxes, scores, classes, dict(type='nms', iou_threshold=0.4), class_agnostic=True
    )
    assert keep.tolist() == naive_nms(boxes, scores, 0.4, 0)


@pytest.mark.parametrize(
    'config', [dict(type='nms', iou_threshold=0.4), dict(type='soft_nms', iou_threshold=0.4)]
)
def test_batched_nms_class_by_class_equals_all_at_once(device, config):
    boxes, scores = random_boxes(60, device=device)
    classes = torch.arange(60, device=device) % 3
    whole = batched_nms(boxes, scores, classes, config)
    split = batched_nms(boxes, scores, classes, dict(config, split_thr=10))
    assert torch.equal(split[1], whole[1])
    torch.testing.assert_close(split[0], whole[0], rtol=0, atol=1e-5)


def test_batched_nms_max_num_keeps_the_best(device):
    boxes, scores = random_boxes(60, device=device)
    config = dict(type='nms', iou_threshold=0.4)
    classes = torch.zeros(60, dtype=torch.long, device=device)
    _, keep = batched_nms(boxes, scores, classes, dict(config, max_num=5))
    assert torch.equal(keep, batched_nms(boxes, scores, classes, config)[1][:5])


@pytest.mark.parametrize('threshold', [3, 5])
def test_nms_match_equals_mmcvs(golden, threshold):
    groups = nms_match(golden['match_dets'], threshold / 10)
    sizes = golden[f'match_{threshold}_sizes']
    assert [len(group) for group in groups] == sizes.tolist()
    assert torch.equal(torch.cat(groups), golden[f'match_{threshold}'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('threshold', [0, 0.25, 0.5, 1])
def test_nms_match_drops_an_iou_equal_to_the_threshold_and_above(device, dtype, threshold):
    boxes, scores = random_boxes(60, dtype, device, whole=True)
    dets = torch.cat([boxes, scores[:, None]], 1)
    left, expected = scores.argsort(descending=True, stable=True).tolist(), []
    corners = boxes.double().cpu().numpy()
    while left:
        group = [
            i for i in left if i == left[0] or iou(corners[left[0]], corners[i], 0) >= threshold
        ]
        expected.append(group)
        left = [i for i in left if i not in group]
    assert [group.tolist() for group in nms_match(dets, threshold)] == expected


def test_nms_match_of_boxes_without_an_area_drops_none():
    dets = np.array([[1, 1, 1, 5, 0.9], [1, 1, 1, 5, 0.8], [0, 0, 4, 4, 0.7]], np.float32)
    assert [group.tolist() for group in nms_match(dets, 0.1)] == [[0], [1], [2]]
    assert nms_match(dets[:0], 0.5) == []
