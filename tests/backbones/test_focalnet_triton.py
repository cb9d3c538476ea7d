"""The Triton path of FocalNet, on a machine without a GPU: interpreted, and compiled for GPUs."""
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from focal_mm.backbones import focalnet
from focal_mm.backbones.focalnet import FocalModulation

pytestmark = pytest.mark.stock

# Batch, channels, height, width, levels, first kernel, dtype: blocks of channels and tiles that are
# full and that are not, maps smaller than a kernel and larger, no level at all.
CASES = [
    (2, 24, 5, 3, 0, 3, torch.float), (2, 24, 3, 7, 2, 3, torch.float),
    (1, 48, 2, 5, 3, 3, torch.float), (1, 96, 1, 2, 4, 3, torch.float),
    (1, 8, 1, 35, 2, 3, torch.float), (1, 8, 7, 14, 1, 13, torch.float),
    (1, 8, 3, 5, 3, 9, torch.float), (1, 24, 3, 4, 2, 3, torch.bfloat16)]


def inputs(batch: int, channels: int, height: int, width: int, levels: int, kernel: int,
           dtype: torch.dtype) -> tuple[FocalModulation, list[Tensor]]:
    m = FocalModulation(channels, levels, kernel).to(dtype)
    joint = torch.randn(batch, height, width, channels + levels + 1, dtype=dtype)
    tensors = [part.permute(0, 3, 1, 2)
               for part in joint.requires_grad_().split((channels, levels + 1), -1)]
    return m, [*tensors, *m.focal_layers.parameters()]


def interpret() -> None:
    """Runs in a process of its own: Triton must not have been imported before."""
    from focal_mm.backbones import focalnet_triton
    focalnet.is_for_triton = lambda *tensors: True
    focalnet_triton.PROGRAMS = 24  # strips of several rows, the last one not full
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
            worst = (one - other).abs().max() / other.abs().max()
            assert worst < tolerance, f'{case}: {worst:.1e} off'
    assert focalnet.triton_works
    print('interpreted')


def test_interpreted_kernels_agree_with_the_formula_in_double_precision():
    pytest.importorskip('triton')
    done = subprocess.run(
        [sys.executable, __file__], text=True, capture_output=True,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.stdout.endswith('interpreted\n'), done.stderr


@pytest.mark.parametrize('capability, kernel, dtype', [
    (80, 11, torch.float), (80, 3, torch.half), (90, 9, torch.bfloat16)])
def test_what_is_launched_compiles_for_gpus(capability, kernel, dtype, monkeypatch, tmp_path):
    pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from focal_mm.backbones import focalnet_triton

    class Driver:
        get_current_device = staticmethod(lambda: capability)  # no number of a real one
        get_current_stream = staticmethod(lambda device: None)
        get_current_target = staticmethod(lambda: GPUTarget('cuda', capability, 32))

    class Compiler:

        def __init__(self, name: str) -> None:
            self.compile = getattr(focalnet_triton, name).warmup
            self.binaries: set[bytes] = set()

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *args, **constants: self.binaries.add(
                self.compile(*args, grid=grid, **constants).asm['cubin'])

    monkeypatch.setattr(driver, '_active', Driver)
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    compilers = {name: Compiler(name)
                 for name in ('level_forward', 'level_backward', 'kernel_gradient')}
    for name, compiler in compilers.items():
        monkeypatch.setattr(focalnet_triton, name, compiler)
    with torch.device('meta'), torch.no_grad():
        _, (context, gates, *kernels) = inputs(1, 96, 50, 76, 2, kernel, dtype)
        stored: list[Tensor] = []
        out = focalnet_triton.forward(context, gates, *kernels, stored=stored)
        focalnet_triton.backward(out, context, gates, *kernels, *stored)
    assert [len(compiler.binaries) for compiler in compilers.values()] == [2, 3, 2]


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What is logged, in a process where Triton has not failed."""
    logged: list[str] = []
    monkeypatch.setattr(focalnet, 'triton_works', True)
    monkeypatch.setattr(focalnet, 'print_log', lambda text, **_: logged.append(text))
    return logged


def gather(m: FocalModulation, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    out = m.gather(*tensors[:2])
    return out, *torch.autograd.grad(out.square().sum(), tensors)


def test_cpu_maps_stay_with_pytorch(monkeypatch, lines):
    pytest.importorskip('triton')
    from focal_mm.backbones import focalnet_triton
    for name in ('forward', 'backward'):
        monkeypatch.setattr(focalnet_triton, name, lambda *_, **__: lines.append('called'))
    gather(*inputs(1, 8, 5, 6, 2, 3, torch.float))
    assert not lines


def test_where_triton_fails_pytorch_takes_over_after_one_line(monkeypatch, lines):
    # Here it does fail: without Triton at its import, without a GPU at the first launch.
    m, tensors = inputs(1, 8, 5, 6, 2, 3, torch.float)
    expected = gather(m, tensors)
    monkeypatch.setattr(focalnet, 'is_for_triton', lambda *_: focalnet.triton_works)
    for _ in range(2):
        torch.testing.assert_close(gather(m, tensors), expected)
    assert len(lines) == 1 and 'Triton' in lines[0] and '\n' not in lines[0]


def test_lack_of_memory_is_no_failure_of_triton(monkeypatch, lines):
    pytest.importorskip('triton')
    from focal_mm.backbones import focalnet_triton

    def forward(*_, **__):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(focalnet_triton, 'forward', forward)
    monkeypatch.setattr(focalnet, 'is_for_triton', lambda *_: True)
    with pytest.raises(torch.OutOfMemoryError):
        gather(*inputs(1, 8, 5, 6, 2, 3, torch.float))
    assert focalnet.triton_works and not lines


def test_what_only_stands_for_a_gpu_map_stays_with_pytorch(lines):
    with FakeTensorMode(), torch.device('cuda'):
        out = FocalModulation(8, 2, 3)(torch.randn(1, 5, 6, 8))
    assert out.is_cuda and focalnet.triton_works and not lines


if __name__ == '__main__':
    interpret()
