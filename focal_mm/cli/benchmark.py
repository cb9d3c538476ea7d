"""Time and memory of networks, measured in turn in one process."""

import ctypes
import gc
import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .networks import Foreign

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass
class Setting:
    """Input, kind of step, precision and device of a measurement.

    Args:
        size (tuple[int, int]): Height and width of the image, in pixels.
        batch (int): Number of images. Default: 1.
        train (bool): Measure a training step (forward and backward, no optimizer) instead of a
            forward pass. Default: False.
        dtype (str): ``'fp32'``, or ``'bf16'`` or ``'fp16'`` by autocast. Default: ``'fp32'``.
        device (str): ``'cpu'`` or ``'cuda'``. Default: ``'cpu'``.
    """

    size: tuple[int, int]
    batch: int = 1
    train: bool = False
    dtype: str = 'fp32'
    device: str = 'cpu'

    def __str__(self) -> str:
        work = 'training step' if self.train else 'forward'
        return f'{work} {self.batch}x3x{self.size[0]}x{self.size[1]} {self.dtype} {self.device}'


@dataclass
class Result:
    """Measurements of a network.

    Attributes:
        name (str): Name of the network.
        seconds (list[float]): Time of a step in each round.
        memory (float or None): Peak memory of a step in MiB; None if it can't be measured.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    memory: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, peer: 'Result') -> float:
        """Return this network's time divided by a peer's, the median over rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds, peer.seconds))


# ---- one step ------------------------------------------------------------------------------------


def make_step(net: nn.Module | Foreign, setting: Setting) -> Callable[[], None]:
    """Return a function without arguments that runs one step of a network."""
    if not isinstance(net, nn.Module):
        return partial(net.step, setting)
    net.to(setting.device).train(setting.train)
    inputs = _inputs(net, setting)
    precision = DTYPES[setting.dtype]

    def forward() -> Any:
        with torch.autocast(setting.device, precision, enabled=precision != torch.float):
            return net(**inputs) if isinstance(inputs, dict) else net(inputs)

    def step() -> None:
        if setting.train:
            losses = [out.float().square().mean() for out in _tensors(forward())]
            torch.stack(losses).sum().backward()
            net.zero_grad(set_to_none=True)
        else:
            with torch.no_grad():
                forward()
        if setting.device == 'cuda':
            torch.cuda.synchronize()

    return step


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [
        tensor
        for part in (value.values() if isinstance(value, dict) else value)
        for tensor in _tensors(part)
    ]


def _inputs(net: nn.Module, setting: Setting) -> Tensor | dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(setting.batch, 3, *setting.size, generator=generator).to(setting.device)
    net = getattr(net, '_orig_mod', net)  # the module inside of torch.compile's
    if not hasattr(net, 'data_preprocessor'):
        return image
    mode = 'loss' if setting.train else 'predict'
    samples = [_sample(net, setting) for _ in range(setting.batch)]
    return dict(inputs=image, data_samples=samples, mode=mode)


def _sample(net: nn.Module, setting: Setting) -> Any:
    """Return annotations of one object for a detector, segmentor or classifier."""
    height, width = setting.size
    shapes = dict(
        img_shape=setting.size,
        ori_shape=setting.size,
        pad_shape=setting.size,
        batch_input_shape=setting.size,
        scale_factor=(1.0, 1.0),
    )
    library = type(net).__module__.split('.')[0]
    if library == 'mmdet':
        import numpy as np
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData

        mask = np.zeros((1, height, width), np.uint8)
        mask[0, height // 4 : height // 2, width // 4 : width // 2] = 1
        box = torch.tensor([[width // 4, height // 4, width // 2, height // 2]]).float()
        sample = DetDataSample(metainfo=shapes)
        sample.gt_instances = InstanceData(
            bboxes=box,
            labels=torch.zeros(1, dtype=torch.long),
            masks=BitmapMasks(mask, height, width),
        )
    elif library == 'mmseg':
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=shapes)
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
    else:
        from mmpretrain.structures import DataSample

        sample = DataSample(metainfo=shapes).set_gt_label(0)
    return sample.to(setting.device)


# ---- measuring -----------------------------------------------------------------------------------


def compare(
    steps: dict[str, Callable[[], None]], rounds: int = 5, device: str = 'cpu'
) -> list[Result]:
    """Measure steps in turn, A B C A B C ..., so that machine noise affects all networks equally.

    Before the timed rounds each step runs once to warm up and once to measure its memory.

    Args:
        steps (dict): Name and step of each network, see :func:`make_step`.
        rounds (int): Number of timed rounds. Default: 5.
        device (str): Device whose memory is measured, ``'cpu'`` or ``'cuda'``. Default: ``'cpu'``.
    """
    results = [Result(name) for name in steps]
    for result, step in zip(results, steps.values()):
        step()  # builds what is cached, which should not count as memory of the step
        if not isinstance(step, partial):  # the memory of another process can't be measured
            result.memory = peak_memory(step, device)
    for _ in range(rounds):
        for result, step in zip(results, steps.values()):
            start = perf_counter()
            step()
            result.seconds.append(perf_counter() - start)
    return results


def peak_memory(step: Callable[[], None], device: str = 'cpu') -> float | None:
    """Return the peak memory of a step in MiB, above the memory at its start.

    On the CPU this is resident memory (Linux's VmHWM, reset before the step). Freed memory is
    returned to the system first if the C library can. On CUDA it is allocated memory.

    Args:
        step (callable): Function without arguments.
        device (str): ``'cpu'`` or ``'cuda'``. Default: ``'cpu'``.

    Returns:
        float or None: None if the system does not report it.
    """
    gc.collect()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - start) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
    except (AttributeError, OSError):
        return None
    start = _resident('VmRSS')
    step()
    return (_resident('VmHWM') - start) / 1024


def _resident(kind: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{kind}:'))


# ---- the floor -----------------------------------------------------------------------------------


class WorkCounter(TorchDispatchMode):
    """Context manager that counts matrix products and depth-wise convolutions.

    Attributes:
        products (int): Floating-point operations of matrix products, including attention and
            dense convolutions.
        convolutions (Counter): Number of depth-wise convolutions of each input shape, kernel shape
            and stride.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.convolutions: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten.convolution and args[8] == args[1].shape[0] > 1:
            self.convolutions[tuple(args[0].shape), tuple(args[1].shape), tuple(args[3])] += 1
        elif packet in flop_registry:
            self.products += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def floor(net: nn.Module | Foreign, setting: Setting) -> float:
    """Estimate a lower bound of a step's time, in seconds.

    It is the time of the matrix products, at the rate that a large product reaches on this
    machine, plus the time of each depth-wise convolution alone, in the faster memory format. A
    training step takes three times as long as a forward pass.
    """
    forward = make_step(
        net, Setting(setting.size, setting.batch, False, setting.dtype, setting.device)
    )
    with WorkCounter() as work:
        forward()
    dtype, device = DTYPES[setting.dtype], setting.device
    side = 2048 if device == 'cpu' else 8192
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    total = work.products * _shortest_time(lambda: matrix @ matrix, device) / (2 * side**3)
    for (shape, kernel, stride), times in work.convolutions.items():
        x = torch.randn(shape, dtype=dtype, device=device)
        weight = torch.randn(kernel, dtype=dtype, device=device)
        convolve = partial(
            F.conv2d, weight=weight, stride=stride, padding=kernel[-1] // 2, groups=shape[1]
        )
        total += times * min(
            _shortest_time(partial(convolve, y), device)
            for y in (x, x.to(memory_format=torch.channels_last))
        )
    return total * (3 if setting.train else 1)


def _shortest_time(step: Callable[[], Any], device: str) -> float:
    def timed() -> float:
        start = perf_counter()
        with torch.no_grad():
            step()
        if device == 'cuda':
            torch.cuda.synchronize()
        return perf_counter() - start

    return min(timed() for _ in range(4))


# ---- reports -------------------------------------------------------------------------------------


@dataclass
class Report:
    """Results at one setting.

    Attributes:
        setting (Setting): The setting.
        results (list[Result]): Results; the first one is compared with each of the others.
        floor (float or None): :func:`floor` of the first network, in seconds.
    """

    setting: Setting
    results: list[Result]
    floor: float | None = None

    def table(self) -> str:
        """Format the results as a table, one line a network."""
        first = self.results[0]
        lines = [str(self.setting), f'{"ms":>55}  images/s     MiB  time over memory over']
        for result in self.results:
            memory = '-' if result.memory is None else f'{result.memory:.0f}'
            over = more = ''
            if result is not first:
                over = f'{first.ratio(result):.2f}'
                more = (
                    f'{first.memory / result.memory:.2f}' if first.memory and result.memory else '-'
                )
            speed = self.setting.batch / result.median
            lines.append(
                f'  {Path(result.name).name:44.44}{result.median * 1e3:9.1f}'
                f'{speed:10.2f}{memory:>8}{over:>11}{more:>12}'
            )
        if self.floor:
            lines.append(
                f'  {"floor: products and depth-wise convolutions":44}'
                f'{self.floor * 1e3:9.1f}{"":18}{first.median / self.floor:11.2f}'
            )
        return '\n'.join(lines)


def machine(device: str) -> dict[str, Any]:
    """Return the processor, number of threads and versions that the figures depend on."""
    name = platform.processor() or platform.machine()
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif Path('/proc/cpuinfo').is_file():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next((line.split(':')[1].strip() for line in lines if 'model name' in line), name)
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        isa=torch.backends.cpu.get_cpu_capability(),
    )


def save(reports: Sequence[Report], path: str | Path) -> None:
    """Write reports to a JSON file."""
    rows = [
        dict(
            setting=asdict(report.setting),
            floor=report.floor,
            results=[
                dict(name=r.name, median=r.median, seconds=r.seconds, memory=r.memory)
                for r in report.results
            ],
        )
        for report in reports
    ]
    device = reports[0].setting.device
    Path(path).write_text(json.dumps(dict(machine=machine(device), reports=rows), indent=1))


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Draw milliseconds per megapixel against image size, a flat line where cost is linear."""
    from matplotlib.figure import Figure

    axes = (figure := Figure((7, 4.5))).add_subplot()
    for i, result in enumerate(reports[0].results):
        points = sorted(
            (
                r.setting.batch * r.setting.size[0] * r.setting.size[1] / 1e6,
                r.results[i].median * 1e3,
            )
            for r in reports
        )
        axes.plot([x for x, _ in points], [y / x for x, y in points], 'o-', label=result.name)
    axes.set(xscale='log', xlabel='megapixels', ylabel='ms per megapixel')
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, bbox_inches='tight')
