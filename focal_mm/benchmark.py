"""Time and memory of networks, measured in turn in one process: the logic of tools/benchmark.py."""
import ast
import ctypes
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@dataclass
class Setting:
    """What a network is measured at.

    Args:
        size (tuple[int, int]): Height and width of the image, in pixels.
        batch (int): Images. Default: 1.
        train (bool): A training step (forward, backward, no optimizer) instead of a forward.
        dtype (str): fp32, or bf16 or fp16 by autocast. Default: fp32.
        device (str): cpu or cuda. Default: cpu.
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
    """Seconds of each round, and peak memory in MiB above the start; None: cannot be measured."""
    name: str
    seconds: list[float] = field(default_factory=list)
    memory: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, peer: 'Result') -> float:
        """Our time over the peer's: the median over rounds, each round's two run side by side."""
        return statistics.median(a / b for a, b in zip(self.seconds, peer.seconds))


# ---- networks by name ----------------------------------------------------------------------------


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME(key=value, ...)`` with literal values -> name and arguments.

    Raises:
        ValueError: If the text is neither.
    """
    name, bracket, arguments = text.partition('(')
    try:
        call = ast.parse(f'f({arguments}' if bracket else 'f()', mode='eval').body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        return name.strip(), {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f'{text}: not NAME or NAME(key=value, ...) with plain values, '
                         "as FocalNet(arch='tiny_lrf', focal_windows=9)") from None


def build(text: str) -> 'nn.Module | PaddleNet':
    """Builds a network.

    Args:
        text (str): With arguments in brackets where it takes some, see :func:`parse`:

            - a backbone of the registry: ``FocalNet``, ``mmdet.SwinTransformer``,
              ``mmpretrain.ConvNeXt``;
            - one of timm, its feature maps: ``timm.focalnet_tiny_lrf``;
            - a class in a file, whose folder it may import from: ``path/focalnet.py:FocalNet``;
            - a class of Paddle likewise, run by a Python that has Paddle, in a process of its own:
              ``paddle@path/python:path/mixformer.py:MixFormer_B4``;
            - a config of ours or of OpenMMLab, ``configs/....py`` or ``mmdet::...``: the whole
              model.

    Raises:
        ValueError: If there is no such network.
    """
    name, arguments = parse(text)
    if name.startswith('paddle@'):
        return PaddleNet(*_split(name.removeprefix('paddle@'), 3), arguments)
    if '.py:' in name:
        return _class_of_file(*name.rsplit(':', 1))(**arguments)
    if name.endswith('.py'):
        from .engine import load_config
        model = load_config(name, options=arguments).model
        for part in (model, model.get('backbone', {})):
            part.pop('init_cfg', None)
        return MODELS.build(model)
    scope, _, kind = name.rpartition('.')
    if scope == 'timm':
        import timm
        if kind not in timm.list_models():
            raise ValueError(f'{name}: timm has no such model; see timm.list_models()')
        return timm.create_model(kind, features_only=True, **arguments)
    if scope:
        init_default_scope(scope)
    if MODELS.get(name) is None:
        raise ValueError(f'{name}: no such backbone; give one of the registry (FocalNet, '
                         'mmdet.SwinTransformer), timm.NAME, FILE.py:CLASS or a config')
    return MODELS.build(dict(type=name, **arguments))


def _split(text: str, count: int) -> list[str]:
    parts = text.split(':')
    if len(parts) != count:
        raise ValueError(f'paddle@{text}: a peer in Paddle is paddle@PYTHON:FILE.py:CLASS')
    return parts


class PaddleNet:
    """A network of Paddle in a child process, for Paddle and torch do not share one well.

    Args:
        python (str): An interpreter that has Paddle.
        path (str): File with the class.
        name (str): Its name in there, a class or a function that builds one.
        arguments (dict): Its arguments.
    """

    child = """
import importlib.util, json, os, sys
import paddle
path, name, arguments = json.loads(sys.argv[1])
sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
spec = importlib.util.spec_from_file_location('peer', path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
net = getattr(module, name)(**arguments)
for line in sys.stdin:
    shape, train = json.loads(line)
    net.train() if train else net.eval()
    image = paddle.randn(shape)
    with paddle.set_grad_enabled(train):
        outs = net(image)
        if train:
            outs = outs if isinstance(outs, (list, tuple)) else [outs]
            sum(out.square().mean() for out in outs).backward()
            net.clear_gradients()
    print('step done', flush=True)
"""

    def __init__(self, python: str, path: str, name: str, arguments: dict) -> None:
        self.process = subprocess.Popen(
            [python, '-c', self.child, json.dumps([path, name, arguments])], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads())))

    def step(self, setting: Setting) -> None:
        if setting.dtype != 'fp32' or setting.device != 'cpu':
            raise ValueError('a peer in Paddle is measured in fp32 on the CPU only')
        try:
            shape = [setting.batch, 3, *setting.size]
            print(json.dumps([shape, setting.train]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # its output has ended too
        for line in self.process.stdout:
            if line == 'step done\n':
                return
        raise ValueError(f'{self.process.args[0]}: the process with Paddle ended, see above why')


def _class_of_file(path: str, name: str) -> type:
    if not Path(path).is_file():
        raise ValueError(f'{path}: no such file; a peer in a file is FILE.py:CLASS')
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(f'peer_{Path(path).stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f'{path}: has no class {name}')
    return getattr(module, name)


# ---- one step ------------------------------------------------------------------------------------


def step_of(net: nn.Module | PaddleNet, setting: Setting) -> Callable[[], None]:
    """A function without arguments that runs one step of a network."""
    if isinstance(net, PaddleNet):
        return partial(net.step, setting)
    net.to(setting.device).train(setting.train)
    inputs = _inputs(net, setting)
    precision = DTYPES[setting.dtype]

    def forward() -> Any:
        with torch.autocast(setting.device, precision, enabled=precision != torch.float):
            return net(**inputs) if isinstance(inputs, dict) else net(inputs)

    def step() -> None:
        if setting.train:
            loss = sum(out.float().square().mean() for out in _tensors(forward()))
            loss.backward()
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
    return [tensor for part in (value.values() if isinstance(value, dict) else value)
            for tensor in _tensors(part)]


def _inputs(net: nn.Module, setting: Setting) -> Tensor | dict:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(setting.batch, 3, *setting.size, generator=generator).to(setting.device)
    net = getattr(net, '_orig_mod', net)  # that of torch.compile
    if not hasattr(net, 'data_preprocessor'):
        return image
    mode = 'loss' if setting.train else 'predict'
    samples = [_sample(net, setting) for _ in range(setting.batch)]
    return dict(inputs=image, data_samples=samples, mode=mode)


def _sample(net: nn.Module, setting: Setting) -> Any:
    """One object in the middle, for a whole detector, segmentor or classifier."""
    height, width = setting.size
    shapes = dict(img_shape=setting.size, ori_shape=setting.size, pad_shape=setting.size,
                  batch_input_shape=setting.size, scale_factor=(1., 1.))
    library = type(net).__module__.split('.')[0]
    if library == 'mmdet':
        import numpy as np
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        from mmengine.structures import InstanceData
        mask = np.zeros((1, height, width), np.uint8)
        mask[0, height // 4:height // 2, width // 4:width // 2] = 1
        box = torch.tensor([[width // 4, height // 4, width // 2, height // 2]]).float()
        sample = DetDataSample(metainfo=shapes)
        sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long),
                                           masks=BitmapMasks(mask, height, width))
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


def compare(steps: dict[str, Callable[[], None]], rounds: int = 5, device: str = 'cpu'
            ) -> list[Result]:
    """Measures steps in turn, A B C A B C ..., so that all see the same weather.

    The first round warms up: its time does not count, and in it memory is measured.

    Args:
        steps (dict): Name to step.
        rounds (int): Timed rounds. Default: 5.
        device (str): Where memory is measured, ``'cpu'`` or ``'cuda'``. Default: ``'cpu'``.
    """
    results = [Result(name) for name in steps]
    for result, step in zip(results, steps.values()):
        step()  # what is built once (plans, kernels) is not the step's own memory
        if not isinstance(step, partial):  # that of another process
            result.memory = peak_memory(step, device)
    for _ in range(rounds):
        for result, step in zip(results, steps.values()):
            start = perf_counter()
            step()
            result.seconds.append(perf_counter() - start)
    return results


def peak_memory(step: Callable[[], None], device: str = 'cpu') -> float | None:
    """Peak memory of a step above its start, in MiB.

    On the CPU the most memory that was resident (Linux's VmHWM, set back before the step); freed
    memory is given back to the system first, where the C library can. On CUDA the most that was
    allocated. None where the system does not tell.
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


class Work(TorchDispatchMode):
    """Counts, while it is active, the operations of matrix products (attention and dense
    convolutions included), and the depth-wise convolutions by their shapes.

    Attributes:
        products (int): Floating-point operations.
        convolutions (Counter): How often each (input shape, kernel shape, stride) came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.convolutions: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet is torch.ops.aten.convolution and args[8] == args[1].shape[0] > 1:
            self.convolutions[tuple(args[0].shape), tuple(args[1].shape), tuple(args[3])] += 1
        elif packet in flop_registry:
            self.products += flop_registry[packet](*args, **kwargs, out_val=out)
        return out


def floor(net: nn.Module, setting: Setting) -> float:
    """Seconds that a step's matrix products and depth-wise convolutions take alone.

    Products at the rate of a large one of this machine, each depth-wise convolution in the faster
    memory format. A training step has three times a forward's.
    """
    forward = step_of(net, Setting(setting.size, setting.batch, False, setting.dtype,
                                   setting.device))
    with Work() as work:
        forward()
    dtype, device = DTYPES[setting.dtype], setting.device
    side = 2048 if device == 'cpu' else 8192
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    total = work.products * _alone(lambda: matrix @ matrix, device) / (2 * side**3)
    for (shape, kernel, stride), times in work.convolutions.items():
        x = torch.randn(shape, dtype=dtype, device=device)
        weight = torch.randn(kernel, dtype=dtype, device=device)
        total += times * min(
            _alone(lambda: F.conv2d(y, weight, None, stride, kernel[-1] // 2, 1, shape[1]), device)
            for y in (x, x.to(memory_format=torch.channels_last)))
    return total * (3 if setting.train else 1)


def _alone(step: Callable[[], Any], device: str) -> float:
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
    """Results at one setting; the first is the one that the others are compared with."""
    setting: Setting
    results: list[Result]
    floor: float | None = None

    def table(self) -> str:
        first = self.results[0]
        lines = [str(self.setting), f'{"ms":>55}  images/s     MiB  time over memory over']
        for result in self.results:
            memory = '-' if result.memory is None else f'{result.memory:.0f}'
            over = more = ''
            if result is not first:
                over = f'{first.ratio(result):.2f}'
                more = f'{first.memory / result.memory:.2f}' if result.memory else '-'
            speed = self.setting.batch / result.median
            lines.append(f'  {Path(result.name).name:44.44}{result.median * 1e3:9.1f}'
                         f'{speed:10.2f}{memory:>8}{over:>11}{more:>12}')
        if self.floor:
            lines.append(f'  {"floor: products and depth-wise convolutions":44}'
                         f'{self.floor * 1e3:9.1f}{"":18}{first.median / self.floor:11.2f}')
        return '\n'.join(lines)


def machine(device: str) -> dict[str, Any]:
    """What a figure must be read with: processor, threads, versions."""
    name = platform.processor() or platform.machine()
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    elif Path('/proc/cpuinfo').is_file():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next((line.split(':')[1].strip() for line in lines if 'model name' in line), name)
    return dict(device=name, threads=torch.get_num_threads(), torch=torch.__version__,
                python=platform.python_version(), isa=torch.backends.cpu.get_cpu_capability())


def save(reports: Sequence[Report], path: str) -> None:
    """Writes reports as JSON."""
    rows = [dict(setting=asdict(report.setting), floor=report.floor,
                 results=[dict(name=r.name, median=r.median, seconds=r.seconds, memory=r.memory)
                          for r in report.results]) for report in reports]
    device = reports[0].setting.device
    Path(path).write_text(json.dumps(dict(machine=machine(device), reports=rows), indent=1))


def plot(reports: Sequence[Report], path: str) -> None:
    """Draws cost against image size: milliseconds a megapixel, flat where cost is linear."""
    from matplotlib.figure import Figure
    axes = (figure := Figure((7, 4.5))).add_subplot()
    for i, result in enumerate(reports[0].results):
        points = sorted((r.setting.batch * r.setting.size[0] * r.setting.size[1] / 1e6,
                         r.results[i].median * 1e3) for r in reports)
        axes.plot([x for x, _ in points], [y / x for x, y in points], 'o-', label=result.name)
    axes.set(xscale='log', xlabel='megapixels', ylabel='ms a megapixel')
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.savefig(path, bbox_inches='tight')
