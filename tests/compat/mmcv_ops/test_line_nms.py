"""line_nms of the OneDL stack's mmcv.ops: 0 to 24 lanes; stock mmcv has no such function."""

import pytest
import torch

from focal_mm.compat.mmcv_ops import line_nms_forward

pytestmark = pytest.mark.stock


def naive(close, scores, top_k):
    """Kept lanes and, for each lane, the 1-based rank of the last kept one that it is close to."""
    order = scores.argsort(descending=True).tolist()
    kept, parents, left = [], [0] * len(order), list(order)
    while left and len(kept) < top_k:
        best = left.pop(0)
        kept.append(best)
        parents[best] = len(kept)
        for other in order[order.index(best) + 1 :]:
            if close[best][other]:
                parents[other] = len(kept)
                left = [lane for lane in left if lane != other]
    return kept, parents


@pytest.mark.parametrize('top_k', [1, 3, 24])
@pytest.mark.parametrize('order', ['sorted', 'any'])
def test_lanes_that_are_close_by_mmcvs_measure_are_dropped(golden, order, top_k):
    lanes, close = golden['lanes'], golden['lanes_close'].tolist()
    scores = torch.rand(len(lanes), device=lanes.device)
    if order == 'sorted':
        scores = scores.sort(descending=True).values
    keep, count, parents = line_nms_forward(lanes, scores, 4.0, top_k)
    kept, expected = naive(close, scores, top_k)
    assert count.item() == len(kept)
    assert keep.tolist() == kept + [0] * (len(lanes) - len(kept))
    assert parents.tolist() == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_order_of_the_lanes_and_their_type_do_not_matter(golden, dtype):
    lanes = golden['lanes'].to(dtype)
    scores = torch.rand(len(lanes), device=lanes.device)
    turn = torch.randperm(len(lanes), device=lanes.device)
    (keep, count, _), (turned, again, _) = (
        line_nms_forward(lanes[index], scores[index], 4.0, 24)
        for index in (torch.arange(len(lanes), device=lanes.device), turn)
    )
    assert torch.equal(turn[turned[:again]], keep[:count])


def test_no_lanes_give_none(device):
    keep, count, parents = line_nms_forward(
        torch.zeros(0, 77, device=device), torch.zeros(0, device=device), 4.0, 5
    )
    assert count == 0
    assert not len(keep)
    assert not len(parents)


def test_lanes_of_another_number_of_positions_are_an_error():
    with pytest.raises(ValueError, match='^line_nms: lanes need 77 columns, .*but have 41$'):
        line_nms_forward(torch.zeros(2, 41), torch.zeros(2), 4.0, 5)


def test_mmcv_calls_it(golden):
    mmcv_ops = pytest.importorskip('mmcv.ops')
    if not hasattr(mmcv_ops, 'line_nms'):
        pytest.skip('stock mmcv has none')
    lanes, scores = golden['lanes'], torch.arange(24, 0, -1, device=golden['lanes'].device)
    keep, count, _ = mmcv_ops.line_nms(lanes, scores, overlap=4.0, top_k=3)
    assert keep[0] == 0
    assert 1 <= count <= 3
