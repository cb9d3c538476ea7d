from typing import NamedTuple

import pytest
import torch

from focal_mm.backbones import window_attention
from focal_mm.backbones.focal_transformer import gather_plan, nearest_plan
from focal_mm.backbones.mixformer import window_plan
from focal_mm.backbones.window_attention import (Plan, WindowAttention, attend, home_places,
                                                 kept_parts)

pytestmark = pytest.mark.stock

HEADS, HEIGHT, WIDTH, CPU = 2, 28, 35, torch.device('cpu')
# How the plan of a map is made, how far its windows are shifted, and how far its map was rolled.
PLANS = {
    'focal': ((gather_plan, HEIGHT, WIDTH, 7, 3, 5, 2, None, CPU), (0, 0), (0, 0)),
    'focal, shifted': ((gather_plan, HEIGHT, WIDTH, 7, 3, 5, 1, 3, CPU), (3, 3), (3, 3)),
    'nearest': ((nearest_plan, HEIGHT, WIDTH, 7, 20, 1, CPU), (0, 0), (0, 0)),
    'window': ((window_plan, HEIGHT, WIDTH, 7, None, CPU), (0, 0), (0, 0)),
    'window, shifted': ((window_plan, HEIGHT, WIDTH, 7, (3, 2), CPU), (3, 2), (0, 0)),
}


class Case(NamedTuple):
    plan: Plan
    parts: list[Plan]
    places: torch.Tensor
    shift: tuple[int, int]
    rolled: tuple[int, int]

    def draw(self, scale: float = 1.) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, keys and values of all tokens of two images, pooled ones included; and biases."""
        torch.manual_seed(0)
        qkv = torch.randn(2, int(self.plan.keys.max()) + 1, 3 * HEADS * 8, dtype=torch.double)
        bias = torch.randn(HEADS, 49, len(self.places), dtype=torch.double)
        return (qkv * scale).requires_grad_(), bias.requires_grad_()

    def in_parts(self, qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        out = WindowAttention.apply(qkv, HEIGHT * WIDTH, bias, self.parts)
        return out.unflatten(1, (HEIGHT, WIDTH)).roll(self.rolled, (1, 2))

    def at_once(self, qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """By PyTorch's own attention."""
        if self.plan.places is None:
            places = self.places.expand_as(self.plan.keys)
        else:
            places = torch.searchsorted(self.places, self.plan.places)
        home = home_places(HEIGHT, WIDTH, HEIGHT, WIDTH, 7, self.shift, CPU)
        return attend(qkv, self.plan, bias[..., places].movedim(2, 0), home, HEADS, 0.)


@pytest.fixture(params=PLANS)
def case(request, monkeypatch):
    monkeypatch.setattr(window_attention, 'SCORES', 3 * HEADS * 49 * 49)
    kept_parts.cache_clear()
    (make, *sizes), shift, rolled = PLANS[request.param]
    plan, (parts, places) = make(*sizes), kept_parts(HEADS, make, *sizes)
    if places is None:
        places = torch.arange(plan.keys.shape[1])
    yield Case(plan, parts, places, shift, rolled)
    kept_parts.cache_clear()


def test_every_window_is_in_one_part(case):
    assert len(case.parts) > 2
    windows = torch.cat([part.own for part in case.parts]).tolist()
    assert sorted(windows) == sorted(case.plan.own.tolist())


def test_the_largest_part_comes_first(case):
    sizes = [part.keys.numel() for part in case.parts]
    assert sizes == sorted(sizes, reverse=True)


def test_no_key_of_a_part_is_masked_for_all_its_windows(case):
    for part in case.parts:
        assert part.mask is None or (part.mask == 0).flatten(0, 2).any(0).all()
    masked = case.plan.mask is not None and case.plan.keys.shape[1] > 49
    assert masked == any(len(p.keys[0]) < len(case.plan.keys[0]) for p in case.parts)


def test_attention_in_parts_is_that_of_all_windows(case):
    outs, grads = [], []
    for attention in (case.in_parts, case.at_once):
        qkv, bias = case.draw()
        out = attention(qkv, bias)
        outs.append(out)
        grads.append(torch.autograd.grad((out * torch.linspace(-1, 1, 16)).sum(), (qkv, bias)))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*grads)


def test_large_scores_do_not_overflow(case):
    # In single precision scores of 10^4 are off by up to 5e-4, and so by a share are the weights.
    qkv, bias = case.draw(scale=50.)
    torch.testing.assert_close(case.in_parts(qkv.float(), bias.float()),
                               case.at_once(qkv, bias).float(), rtol=1e-3, atol=1e-3 * 50)


def test_half_precision_is_near(case):
    results = []
    for dtype in (torch.bfloat16, torch.double):
        tensors = [x.detach().to(dtype).requires_grad_() for x in case.draw()]
        out = case.in_parts(*tensors)
        out.float().square().sum().backward()
        results.append([out.double(), *(x.grad.double() for x in tensors)])
    for half, exact in zip(*results):
        assert (half - exact).norm() < 0.02 * exact.norm()
