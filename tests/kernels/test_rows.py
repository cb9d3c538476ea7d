import pytest
import torch
from torch import nn

from focal_mm.backbones.focalnet import FocalNet
from focal_mm.kernels import gated_context, inference, rows
from focal_mm.kernels.dispatch import use
from focal_mm.kernels.rows import by_rows, new_map, reuse_memory, row_slices

SMALL = dict(embed_dims=8, depths=(1, 1), focal_levels=2, focal_windows=3)
ARCHS = {
    'plain': {},
    'post-norm': dict(use_postln=True, use_postln_in_modulation=True, layer_scale_init_value=0.5),
    'divided': dict(normalize_modulator=True, focal_levels=(0, 1)),
}


@pytest.fixture
def slices(monkeypatch):
    """Make all maps large, and count the slices of each step."""
    counts = []

    def counted(x, width):
        counts.append(len(found := list(row_slices(x, width))))
        return iter(found)

    monkeypatch.setattr(rows, 'ELEMENTS', 100)
    monkeypatch.setattr(inference, 'ELEMENTS', 100)
    monkeypatch.setattr(rows, 'LEAST', 0)
    monkeypatch.setattr(gated_context, 'BAND', 300)
    monkeypatch.setattr(rows, 'row_slices', counted)
    return counts


@pytest.mark.parametrize('count, width', [(1, 8), (1000, 3), (60800, 384), (950, 3072)])
def test_slices_cover_all_rows_and_none_is_short(count, width):
    found = list(row_slices(torch.empty(count, 1), width))
    assert [row for part in found for row in range(count)[part]] == list(range(count))
    assert len(found) == 1 or all(part.stop - part.start >= 2 * width for part in found)
    assert all((part.stop - part.start) * width <= 2 * rows.ELEMENTS for part in found) or (
        count < 4 * width
    )


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_a_network_by_rows_is_the_plain_one(arch, slices):
    net = FocalNet(SMALL | ARCHS[arch], out_norm=False).eval()
    x = torch.randn(2, 3, 150, 101)
    maps = net(x)
    assert max(slices) > 2
    with use('reference'):
        expected = net(x)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_step_that_is_observed_or_replaced_sees_whole_maps(slices):
    net = FocalNet(SMALL, out_indices=0).eval()
    block, x = net.layers[0].blocks[0], torch.randn(1, 3, 64, 64)
    expected, shapes = net(x)[0], []
    assert slices
    emit = block.modulation.emit
    for change in (
        lambda: block.norm2.register_forward_hook(lambda *a: shapes.append(a[2].shape)).remove,
        lambda: setattr(block.modulation, 'emit', lambda *a: shapes.append(a[0].shape) or emit(*a)),
        lambda: setattr(block, 'mlp', nn.Sequential(block.mlp)),
    ):
        undo = change()
        slices.clear()
        torch.testing.assert_close(net(x)[0], expected, atol=1e-5, rtol=1e-5)
        assert not slices
        if undo:
            undo()
        vars(block.modulation).pop('emit', None)
    assert shapes == [(1, 16, 16, 8)] * 2


def test_gradients_and_training_go_the_plain_way(slices):
    net, x = FocalNet(SMALL), torch.randn(1, 3, 64, 64)
    net.eval()(x)[0].sum().backward()
    with torch.no_grad():
        net.train()(x)
    assert not slices


def test_results_keep_their_dtypes(slices):
    x, y = torch.randn(1, 20, 10, 4), torch.randn(1, 20, 10, 2)

    def step(x, y):
        return x * 2, y.bfloat16()

    double, half = by_rows(step, 4, x, y)
    assert slices[0] > 1
    assert double.equal(x * 2)
    assert half.equal(y.bfloat16())


def test_memory_is_reused_only_when_nobody_has_a_view_of_it():
    like = torch.empty(0)
    with reuse_memory():
        first = new_map(like, 600, 500)
        address, view = first.data_ptr(), first[10:]
        assert address % rows.ALIGNMENT == 0
        del first
        view.fill_(1)
        second = new_map(like, 600, 500).fill_(2)
        assert view.eq(1).all() and second.eq(2).all()
        del view
        assert new_map(like, 400, 700).data_ptr() == address
        assert new_map(like, 700, 500).data_ptr() != address  # larger
        kept = new_map(like, 600, 500).fill_(3)
    assert new_map(like, 600, 500).fill_(4).data_ptr() != kept.data_ptr()
    assert kept.eq(3).all()
