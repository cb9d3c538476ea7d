"""Triton's gated context, on a machine without a GPU: interpreted, and compiled for GPUs."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from focal_mm.backbones.focalnet import FocalModulation
from focal_mm.kernels import dispatch, gated_context, use

# Batch, channels, height, width, levels, first kernel, dtype: blocks of channels and tiles that are
# full and that are not, maps smaller than a kernel and larger, no level at all.
CASES = [
    (2, 24, 5, 3, 0, 3, torch.float),
    (2, 24, 3, 7, 2, 3, torch.float),
    (1, 48, 2, 5, 3, 3, torch.float),
    (1, 96, 1, 2, 4, 3, torch.float),
    (1, 8, 1, 35, 2, 3, torch.float),
    (1, 8, 7, 14, 1, 13, torch.float),
    (1, 8, 3, 5, 3, 9, torch.float),
    (1, 24, 3, 4, 2, 3, torch.bfloat16),
    (0, 8, 3, 5, 2, 3, torch.float),
]


def inputs(
    batch: int, channels: int, height: int, width: int, levels: int, kernel: int, dtype: torch.dtype
) -> tuple[FocalModulation, list[Tensor]]:
    m = FocalModulation(channels, levels, kernel).to(dtype)
    joint = torch.randn(batch, height, width, channels + levels + 1, dtype=dtype)
    tensors = [
        part.permute(0, 3, 1, 2)
        for part in joint.requires_grad_().split((channels, levels + 1), -1)
    ]
    return m, [*tensors, *m.focal_layers.parameters()]


if os.environ.get('TRITON_INTERPRET'):
    import triton
    import triton.language as tl

    from focal_mm.kernels.gated_context_triton import tile

    @triton.jit
    def far_tile(
        out, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
    ):
        """Store the last token of each image's first tile."""
        token = tile(height, width, ROWS, COLUMNS, CHANNELS)[4]
        tl.store(out + tl.program_id(2), tl.max(token))


def interpret() -> None:
    """Runs in a process of its own: Triton must not have been imported before."""
    from focal_mm.kernels import gated_context_triton

    gated_context.is_triton = lambda *tensors: tensors[0].dtype != torch.double
    gated_context.is_half = lambda x: False  # as on a GPU
    gated_context_triton.PROGRAMS = 24  # strips of several rows, the last one not full
    for case in CASES:
        torch.manual_seed(0)
        m, tensors = inputs(*case)
        ours = m.gather(*tensors[:2])
        grad = torch.randn_like(ours)
        ours = [ours, *torch.autograd.grad(ours, tensors, grad)]
        with torch.inference_mode():
            torch.testing.assert_close(m.gather(*tensors[:2]), ours[0])
        exact = m.double()
        context, gates = (t.detach().double().requires_grad_() for t in tensors[:2])
        by_steps = exact.aggregate(exact.contextualize(context), gates)
        wanted = (context, gates, *exact.focal_layers.parameters())
        theirs = [by_steps, *torch.autograd.grad(by_steps, wanted, grad.double())]
        tolerance = 1e-5 if case[-1] == torch.float else 0.03
        for one, other in zip(ours, theirs):
            assert one.dtype == case[-1]
            if other.numel():
                worst = (one - other).abs().max() / (other.abs().max() or 1)
                assert worst < tolerance, f'{case}: {worst:.1e} off'
    last = torch.zeros(3, dtype=torch.long)
    far_tile[1, 1, 3](last, 2**16, 2**16, ROWS=4, COLUMNS=8, CHANNELS=16)
    assert last.tolist() == [i * 2**32 + 3 * 2**16 + 7 for i in range(3)]
    print('interpreted')


def test_interpreted_kernels_agree_with_the_formula_in_double_precision():
    pytest.importorskip('triton')
    done = subprocess.run(
        [sys.executable, __file__],
        text=True,
        capture_output=True,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert done.stdout.endswith('interpreted\n'), done.stderr


@pytest.mark.parametrize(
    'capability, kernel, dtype',
    [(80, 11, torch.float), (80, 3, torch.half), (90, 9, torch.bfloat16), (100, 9, torch.half)],
)
def test_what_is_launched_compiles_for_gpus(capability, kernel, dtype, monkeypatch, tmp_path):
    pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from focal_mm.kernels import gated_context_triton

    class Driver:
        get_current_device = staticmethod(lambda: capability)  # no number of a real one
        get_current_stream = staticmethod(lambda device: None)
        get_current_target = staticmethod(lambda: GPUTarget('cuda', capability, 32))

    class Compiler:
        def __init__(self, name: str) -> None:
            self.compile = getattr(gated_context_triton, name).warmup
            self.binaries: set[bytes] = set()

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *args, **constants: self.binaries.add(
                self.compile(*args, grid=grid, **constants).asm['cubin']
            )

    monkeypatch.setattr(driver, '_active', Driver)
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    compilers = {
        name: Compiler(name) for name in ('level_forward', 'level_backward', 'kernel_gradient')
    }
    for name, compiler in compilers.items():
        monkeypatch.setattr(gated_context_triton, name, compiler)
    with torch.device('meta'), torch.no_grad():
        _, (context, gates, *kernels) = inputs(1, 96, 50, 76, 2, kernel, dtype)
        stored: list[Tensor] = []
        out = gated_context_triton.forward(context, gates, *kernels, stored=stored)
        gated_context_triton.backward(out, context, gates, *kernels, *stored)
    assert [len(compiler.binaries) for compiler in compilers.values()] == [2, 3, 2]


def test_grids_of_the_largest_maps_are_those_of_a_gpu(monkeypatch):
    pytest.importorskip('triton')
    from focal_mm.kernels import gated_context_triton

    grids = []

    class Launcher:
        def __getitem__(self, grid: tuple[int, ...]):
            grids.append(grid)
            return lambda *args, **constants: None

    for name in ('level_forward', 'level_backward', 'kernel_gradient'):
        monkeypatch.setattr(gated_context_triton, name, Launcher())
    with torch.device('meta'), torch.no_grad():
        _, (context, gates, *kernels) = inputs(2, 96, 5000, 7000, 2, 9, torch.half)
        assert context.numel() > 2**32
        stored: list[Tensor] = []
        out = gated_context_triton.forward(context, gates, *kernels, stored=stored)
        gated_context_triton.backward(out, context, gates, *kernels, *stored)
    assert len(grids) == 7
    assert all(x < 2**31 and max(y, z) < 2**16 for x, y, z in grids)


@pytest.fixture
def on_gpu(monkeypatch) -> None:
    """Sends maps to Triton as if they were on a GPU."""
    monkeypatch.setattr(gated_context, 'is_triton', lambda *_: True)


def test_triton_is_left_alone_unless_asked_for():
    tensor = torch.empty(1, 8, 5, 6, device='meta')
    for mode in ('fast', 'reference', 'triton'):
        with use(mode), FakeTensorMode(), torch.device('cuda'):
            fake = torch.randn(1, 8, 5, 6)
            assert dispatch.is_triton(fake, fake) == (mode == 'triton')
            assert not dispatch.is_fast(fake)
        assert not dispatch.is_triton(tensor)


def test_failure_says_what_failed_and_the_way_out(on_gpu):
    # Here it does fail: without Triton at its import, without a GPU at the first launch.
    m, tensors = inputs(1, 8, 5, 6, 2, 3, torch.float)
    with pytest.raises(
        RuntimeError, match=r'Triton kernel failed \(.+FOCAL_MM_KERNELS=fast'
    ) as error:
        m.gather(*tensors[:2])
    assert '\n' not in str(error.value)


def test_lack_of_memory_is_no_failure_of_triton(monkeypatch, on_gpu):
    pytest.importorskip('triton')
    from focal_mm.kernels import gated_context_triton

    def forward(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(gated_context_triton, 'forward', forward)
    m, tensors = inputs(1, 8, 5, 6, 2, 3, torch.float)
    with pytest.raises(torch.OutOfMemoryError):
        m.gather(*tensors[:2])


if __name__ == '__main__':
    interpret()
