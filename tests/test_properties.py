"""What holds for any size, batch, choice of maps, dtype, family and arch.

``FOCAL_MM_EXAMPLES`` sets the number of random examples of each arch; from 100 on they differ from
run to run::

    FOCAL_MM_EXAMPLES=1000 pytest tests/test_properties.py -n 8
"""

import gc
import math
import os
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from focal_mm import kernels
from focal_mm.backbones import (
    FocalNet,
    FocalTransformer,
    MixFormer,
    MixingMobileNetV2,
    MixingResNet,
)
from focal_mm.kernels import dispatch

pytestmark = pytest.mark.stock

EXAMPLES = int(os.environ.get('FOCAL_MM_EXAMPLES', '2'))
PIXELS = 12_000  # of a batch, so that an example takes milliseconds
MIXING = dict(mixing_dims=16, num_blocks=1, num_heads=2)
# Every arch with one block a stage and few channels, but its own levels, windows and options.
NETS: dict[str, tuple[type[nn.Module], dict]] = {
    **{
        f'FocalNet {arch}': (FocalNet, dict(arch=arch, embed_dims=8, depths=1))
        for arch in FocalNet.archs
    },
    **{
        f'FocalTransformer {arch}': (
            FocalTransformer,
            dict(arch=arch, embed_dims=4 * values['num_heads'][0], depths=1, window_size=4),
        )
        for arch, values in FocalTransformer.archs.items()
    },
    **{
        f'MixFormer {arch}': (
            MixFormer,
            dict(arch=arch, embed_dims=8 * values['num_heads'][0], depths=1, drop_path_rate=0.0),
        )
        for arch, values in MixFormer.archs.items()
    },
    'MixingResNet': (MixingResNet, dict(MIXING, base_channels=4, stem_channels=4)),
    'MixingMobileNetV2': (MixingMobileNetV2, dict(MIXING, widen_factor=0.1)),
}
# Largest difference between fast and plain kernels, as a part of the largest value.
ERRORS = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        derandomize=EXAMPLES < 100,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def run(net: nn.Module, x: Tensor, mode: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return the maps, and the gradients of all parameters."""
    net.zero_grad()
    with kernels.use(mode):
        maps = net(x)
        sum(m.float().square().mean() if m.numel() else m.sum() for m in maps).backward()
    return list(maps), [p.grad for p in net.parameters() if p.grad is not None]


def assert_near(ours: list[Tensor], theirs: list[Tensor], error: float) -> None:
    """Compare tensors by the largest value of all of them."""
    scale = max([1e-3, *(t.detach().abs().max().item() for t in theirs if t.numel())])
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert not a.numel() or (a - b).abs().max() <= error * scale


def lacks_statistics(name: str, batch: int, height: int, width: int, training: bool) -> bool:
    """Return whether a BatchNorm is to learn from one value, of which there is no variance.

    It happens on the convolutional networks' map of stride 16; mixing blocks have padded windows.
    """
    convolves = name in ('MixingResNet', 'MixingMobileNetV2')
    return convolves and training and batch == 1 and max(height, width) <= 16


@pytest.mark.parametrize('name', NETS)
@examples(EXAMPLES)
@given(data=st.data())
def test_maps_and_gradients_are_finite_and_the_same_by_all_kernels(name, data):
    cls, arguments = NETS[name]
    stages = 1 if name.endswith('_iso') else 4
    out_indices = data.draw(
        st.sets(st.integers(0, stages - 1), min_size=1).map(sorted), label='out_indices'
    )
    batch = data.draw(st.integers(0, 3), label='batch')
    height = data.draw(st.integers(1, 400), label='height')
    width = data.draw(st.integers(1, min(400, PIXELS // (height * max(batch, 1)))), label='width')
    dtype = data.draw(st.sampled_from(list(ERRORS)), label='dtype')
    training = data.draw(st.booleans(), label='training')
    torch.manual_seed(data.draw(st.integers(0, 3), label='seed'))

    net = cls(**arguments, out_indices=out_indices).to(dtype).train(training)
    x = torch.randn(batch, 3, height, width, dtype=dtype)
    stride = net.patch_embed.patch_size if hasattr(net, 'patch_embed') else 4
    sides = [
        (math.ceil(height / stride / 2**i), math.ceil(width / stride / 2**i)) for i in range(stages)
    ]
    if lacks_statistics(name, batch, height, width, training):
        with pytest.raises(ValueError, match='Expected more than 1 value'):
            run(net, x, 'fast')
        return
    maps, gradients = run(net, x, 'fast')
    for i, map_ in zip(out_indices, maps, strict=True):
        assert (map_.shape[0], *map_.shape[2:]) == (batch, *sides[i])
        assert map_.dtype == dtype and map_.isfinite().all()
        if hasattr(net, 'num_features'):
            assert map_.shape[1] == net.num_features[i]
    assert len(gradients) > 0 and all(g.isfinite().all() for g in gradients)
    if batch == 0:
        assert not any(g.any() for g in gradients)
    # Few values have a variance that rounding decides, and gradients of any size.
    if not (training and name.startswith('Mix') and dtype != torch.float64):
        theirs = run(net, x, 'reference')
        assert_near(maps, theirs[0], ERRORS[dtype])
        assert_near(gradients, theirs[1], ERRORS[dtype])


def live_bytes() -> int:
    """Return the size of all tensors in memory."""
    gc.collect()
    tensors = [
        t
        for t in gc.get_objects()
        if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def test_memory_is_bounded_after_500_sizes():
    """Focal Transformer caches plans of windows by the size of the map."""
    cls, arguments = NETS['FocalTransformer tiny']
    net = cls(**arguments, patch_size=1, out_indices=0).eval()
    sizes = random.Random(0).sample([(h, w) for h in range(1, 24) for w in range(1, 24)], 500)
    used = []
    for number, size in enumerate(sizes):
        with torch.no_grad():
            net(torch.zeros(1, 3, *size))
        if number in (249, 499):
            used.append(live_bytes())
    assert used[1] < 1.2 * used[0] + 1e6


def test_what_is_cached_is_bounded():
    """All caches of the kernels are by one decorator, which takes a size."""
    calls = []
    cache = dispatch.cached(maxsize=4)(lambda size: calls.append(size) or size)
    for size in (*range(100), 99, 98, 0):
        assert cache(size) == size
    assert calls == [*range(100), 0]
