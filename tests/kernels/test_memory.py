import pytest
import torch

from focal_mm.kernels import memory
from focal_mm.kernels.memory import count_parts, new_map, reuse_memory


@pytest.mark.parametrize('tokens, width', [(1, 8), (1000, 3), (60800, 384), (950, 3072)])
def test_no_part_is_short_or_larger_than_it_must_be(tokens, width):
    parts = count_parts(tokens, width)
    assert parts == 1 or tokens / parts >= 2 * width
    assert tokens / parts * width <= memory.ELEMENTS or tokens / (parts + 1) < 2 * width


def test_memory_is_reused_only_when_nobody_has_a_view_of_it(monkeypatch):
    monkeypatch.setattr(memory, 'LEAST', 0)
    like = torch.empty(0)
    with reuse_memory():
        first = new_map(like, 600, 500)
        address, view = first.data_ptr(), first[10:]
        assert address % memory.ALIGNMENT == 0
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
