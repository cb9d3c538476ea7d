"""The fast attention of windows beside its plain twin, for every kind of plan."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from focal_mm.kernels import use, window_attention
from focal_mm.kernels.window_attention import (
    attention_weights,
    cached_chunks,
    window_attention_reference,
)
from focal_mm.kernels.window_plans import FocalWindows, NearestWindows, Plan, Windows

HEADS, SIZE, CPU = 2, (26, 33), torch.device('cpu')
WINDOWS = {
    'focal': FocalWindows(*SIZE, 7, None, 3, 5, 2),
    'focal, shifted': FocalWindows(*SIZE, 7, (3, 3), 3, 5, 1),
    'nearest': NearestWindows(*SIZE, 7, None, 20, 1),
    'nearest, shifted': NearestWindows(*SIZE, 7, (3, 3), 20, 1),
    'window': Windows(*SIZE, 7),
    'window, shifted': Windows(*SIZE, 7, (3, 2)),
}


class Case(NamedTuple):
    windows: Windows
    plan: Plan
    chunks: list[Plan]
    indices: Tensor  # distinct bias indices, one a column of the bias

    def draw(self, scale: float = 1.0, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
        """Queries, keys and values of all tokens of two images, pooled ones too, and biases."""
        torch.manual_seed(0)
        qkv = torch.randn(2, int(self.plan.keys.max()) + 1, 3 * HEADS * 8, dtype=torch.double)
        bias = torch.randn(HEADS, 49, len(self.indices), dtype=torch.double)
        return (qkv * scale).to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()

    def attend(self, qkv: Tensor, bias: Tensor, mode: str = 'fast') -> Tensor:
        def of_windows(index: Tensor) -> Tensor:
            return bias[..., torch.searchsorted(self.indices, index)].movedim(2, 0)

        with use(mode):
            return window_attention.window_attention(
                qkv, self.windows, bias if self.plan.bias_index is None else of_windows, HEADS
            )


@pytest.fixture(params=WINDOWS)
def case(request, monkeypatch):
    monkeypatch.setattr(window_attention, 'SCORES_PER_CORE', 3 * HEADS * 49 * 49)
    cached_chunks.cache_clear()
    windows = WINDOWS[request.param]
    plan, (chunks, indices) = windows.plan(CPU), cached_chunks(HEADS, windows, CPU)
    if indices is None:
        indices = torch.arange(plan.keys.shape[1])
    yield Case(windows, plan, chunks, indices)
    cached_chunks.cache_clear()


def test_every_window_is_in_one_chunk(case):
    assert len(case.chunks) > 2
    windows = torch.cat([chunk.queries for chunk in case.chunks]).tolist()
    assert sorted(windows) == sorted(case.plan.queries.tolist())


def test_the_largest_chunk_comes_first(case):
    sizes = [chunk.keys.numel() for chunk in case.chunks]
    assert sizes == sorted(sizes, reverse=True)


def test_no_key_of_a_chunk_is_masked_for_all_its_windows(case):
    for chunk in case.chunks:
        assert chunk.mask is None or (chunk.mask == 0).flatten(0, 2).any(0).all()
    masked = case.plan.mask is not None and case.plan.keys.shape[1] > 49
    assert masked == any(len(c.keys[0]) < len(case.plan.keys[0]) for c in case.chunks)


def test_home_leads_from_windows_back_to_the_map(case):
    high, wide = case.windows.padded
    tokens = torch.arange(high * wide).view(high, wide)[: SIZE[0], : SIZE[1]]
    assert case.plan.queries.flatten()[case.windows.home(CPU)].equal(tokens)


def test_fast_attention_is_the_plain_one(case):
    outs, grads = [], []
    for mode in ('fast', 'reference'):
        qkv, bias = case.draw()
        out = case.attend(qkv, bias, mode)
        outs.append(out)
        grads.append(torch.autograd.grad((out * torch.linspace(-1, 1, 16)).sum(), (qkv, bias)))
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*grads)


def test_second_derivatives_are_those_of_the_plain_one(case):
    second = []
    for mode in ('fast', 'reference'):
        qkv, bias = case.draw()
        out = case.attend(qkv, bias, mode)
        grads = torch.autograd.grad(out.square().sum(), (qkv, bias), create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        second.append(torch.autograd.grad(penalty, (qkv, bias)))
    torch.testing.assert_close(*second)


def test_large_scores_do_not_overflow(case):
    # In single precision scores of 10^4 are off by up to 5e-4, and so by a share are the weights.
    exact = case.attend(*case.draw(scale=50.0), 'reference')
    ours = case.attend(*case.draw(scale=50.0, dtype=torch.float))
    torch.testing.assert_close(ours, exact.float(), rtol=1e-3, atol=1e-3 * 50)


@pytest.mark.parametrize('mode', ['fast', 'reference'])
def test_products_that_half_precision_cannot_hold_are_scaled_first(case, mode):
    qkv, bias = case.draw()
    qkv = qkv.detach() * 0.1
    qkv[..., : HEADS * 16] = 100.0  # 8 channels: q.k is 80000, beyond the largest number
    half, exact = (case.attend(qkv.to(t), bias.to(t), mode) for t in (torch.half, torch.double))
    assert half.isfinite().all()
    if mode == 'fast':  # the plain one adds the bias in half precision, which has no bits for it
        torch.testing.assert_close(half.double(), exact, rtol=0.05, atol=0.05)


def test_half_precision_is_near(case):
    results = []
    for dtype in (torch.bfloat16, torch.double):
        tensors = case.draw(dtype=dtype)
        out = case.attend(*tensors)
        out.float().square().sum().backward()
        results.append([out.double(), *(x.grad.double() for x in tensors)])
    for half, exact in zip(*results, strict=True):
        assert (half - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(
    'windows',
    [
        Windows(9, 13, 5, (2, 2)),
        FocalWindows(9, 13, 5, None, expand_size=2, focal_window=3, levels=2),
        FocalWindows(9, 13, 5, (2, 1), expand_size=1, focal_window=1, levels=1),
        NearestWindows(9, 13, 5, (2, 1), topk=8, levels=1),
    ],
    ids=lambda windows: type(windows).__name__,
)
def test_attention_weights_are_those_that_sum_the_values(windows):
    plan = windows.plan(torch.device('cpu'))
    heads, dim = 2, 6
    qkv = torch.randn(2, int(plan.keys.max()) + 1, 3 * heads * dim)
    if plan.bias_index is None:
        bias = torch.randn(heads, 25, plan.keys.shape[1])
    else:
        table = torch.randn(int(plan.bias_index.max()) + 1, heads, 25)

        def bias(index):
            return table[index].permute(0, 2, 3, 1)

    expected = window_attention_reference(qkv, windows, bias, heads).flatten(1, 2)
    places = torch.tensor([0, 17, 64, 9 * 13 - 1])
    weights = attention_weights(qkv, windows, bias, heads, places)
    home = windows.home(torch.device('cpu')).flatten()[places] // 25
    values = qkv.unflatten(-1, (3, heads, dim))[:, plan.keys[home], 2]
    summed = torch.einsum('nphk,npkhc->nphc', weights, values).flatten(2)
    torch.testing.assert_close(summed, expected[:, places])
