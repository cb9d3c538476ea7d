"""The figures that docs/performance.md promises, measured in one run beside what they shall be."""

import gc
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from time import perf_counter
from typing import Any, NamedTuple, cast

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.sampling import seed_generators
from ..export import CALIBRATION, angle
from . import benchmark
from .benchmark import Setting, compare, make_step
from .networks import Foreign, OnnxRuntimeNet, OpenVinoNet, build
from .pictures import read_picture
from .runner import build_runner, load_config

FOCALNET = "FocalNet(arch='tiny_lrf', focal_windows=9)"
SMALL_KERNELS = "FocalNet(arch='tiny_lrf')"
FOCAL = "FocalTransformer(arch='tiny', focal_windows=(15, 13, 9, 7), expand_sizes=3)"
MIXFORMER = "MixFormer(arch='b4')"
SWIN = 'mmdet.SwinTransformer'
TIMM = 'timm.focalnet_tiny_lrf'
# In a folder that has the authors' repositories, by their names.
OFFICIAL_FOCALNET = (
    'FocalNet/detection/mmdet/models/backbones/focalnet.py:FocalNet(embed_dim=96, '
    'depths=[2, 2, 6, 2], focal_levels=[3, 3, 3, 3], focal_windows=[9, 9, 9, 9])'
)
OFFICIAL_FOCAL = (
    'Focal-Transformer/classification/focal_transformer.py:FocalTransformer(img_size=448, '
    'use_shift=False, focal_levels=[2, 2, 2, 2], focal_windows=[15, 13, 9, 7])'
)
NETS = {'FocalNet-T': FOCALNET, 'Focal-T': FOCAL, 'MixFormer-B4': MIXFORMER}
NAMES = {
    OFFICIAL_FOCALNET: 'official code',
    OFFICIAL_FOCAL: 'official code',
    SWIN: 'Swin-T',
    **{net: name for name, net in NETS.items()},
}
LARGE, SQUARE = Setting((800, 1216)), Setting((512, 512), batch=2, train=True)
# Our config, and the one of the same method with Swin-T.
WHOLE = {
    'Mask R-CNN': (
        'focal_mm::mask_rcnn/focalnet_t_1x.py',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        LARGE,
    ),
    'UPerNet': (
        'focal_mm::upernet/focalnet_t.py',
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        Setting((512, 512), batch=2),  # a norm of its decoder has one pixel an image
    ),
}
# What focal-mm demo trains.
DEMO: dict[str, Any] = dict(config='focal_mm::mask_rcnn/focalnet_t_1x.py', mini=True)
# Roads to a network with products of 8 bits.
INT8: dict[str, Callable[..., Any]] = {'OpenVINO': OpenVinoNet, 'ONNX Runtime': OnnxRuntimeNet}
# Of ImageNet, in pixel values of red, green and blue.
MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
SIDES = (224, 448, 800, 1120, 1600)


class Bar(NamedTuple):
    """A network to stay below.

    Attributes:
        network (str): The network.
        time (float or None): Largest ratio of our time to its. Default: only reported.
        memory (float or None): Largest ratio of our peak memory to its. Default: only reported.
        dtype (str or None): Its precision. Default: ours.
    """

    network: str
    time: float | None = None
    memory: float | None = None
    dtype: str | None = None


class Row(NamedTuple):
    """A network of ours and those beside it, which run in turn with it.

    Attributes:
        work (str): What is measured.
        network (str): Our network.
        setting (Setting): Of all.
        bars (tuple[Bar, ...]): The others.
        floor (float or None): Largest ratio of our time to that of the products and depth-wise
            convolutions alone. Default: not measured.
    """

    work: str
    network: str
    setting: Setting
    bars: tuple[Bar, ...] = ()
    floor: float | None = None


@dataclass
class Figure:
    """A figure beside its bar.

    Attributes:
        work (str): What was measured.
        beside (str): What it is a ratio to, or its unit.
        value (float or None): The figure; None: it was not measured.
        bar (float or None): Its largest good value; None: none is set.
        note (str): Why there is no value. Default: empty.
    """

    work: str
    beside: str
    value: float | None = None
    bar: float | None = None
    note: str = ''

    @property
    def verdict(self) -> str:
        """``'met'``, ``'missed'``, ``'measured'`` without a bar, or ``'not measured'``."""
        if self.value is None:
            return 'not measured'
        if self.bar is None:
            return 'measured'
        return 'met' if self.value <= self.bar else 'missed'

    def record(self) -> dict[str, Any]:
        """Return what a JSON file has of it."""
        return dict(asdict(self), verdict=self.verdict)


@dataclass
class Options:
    """How to measure.

    Args:
        rounds (int): Timed rounds. Default: 5.
        device (str): ``'cpu'`` or ``'cuda'``. Default: ``'cpu'``.
        official (Path or None): Folder with the authors' repositories. Default: figures beside
            them are left out.
        shrink (int): Divisor of the sides of all images, to try the suite. Default: 1.
        coco (Path or None): Folder in COCO's layout, whose photographs are used. Default: figures
            that need photographs are left out.
    """

    rounds: int = 5
    device: str = 'cpu'
    official: Path | None = None
    shrink: int = 1
    coco: Path | None = None

    def setting(self, setting: Setting) -> Setting:
        height, width = setting.size
        size = (height // self.shrink, width // self.shrink)
        return replace(setting, size=size, device=self.device)

    def photographs(self, split: str, size: tuple[int, int], count: int) -> list[Tensor]:
        """Return photographs as a network takes them, each (1, 3, height, width).

        Raises:
            ValueError: If there is no folder of photographs.
        """
        if self.coco is None:
            raise ValueError('needs photographs (--coco)')
        files = sorted((self.coco / split).glob('*.jpg'))[:count]
        images = (torch.from_numpy(read_picture(file)[..., ::-1].copy()) for file in files)
        return [
            F.interpolate((image.permute(2, 0, 1)[None] - MEAN) / STD, size, mode='bilinear')
            for image in images
        ]


ROWS = (
    Row(
        'FocalNet-T forward',
        FOCALNET,
        LARGE,
        (Bar(OFFICIAL_FOCALNET, 0.62), Bar(SWIN, 0.70)),
        floor=1.25,
    ),
    Row('FocalNet-T forward, kernels 3, 5, 7', SMALL_KERNELS, LARGE, (Bar(TIMM),)),
    Row(
        'FocalNet-T forward beside the official code deployed',
        FOCALNET,
        LARGE,
        (Bar(f'openvino@{OFFICIAL_FOCALNET}', 0.9), Bar(f'onnxruntime@{OFFICIAL_FOCALNET}', 0.9)),
    ),
    Row(
        'the same in bf16',
        FOCALNET,
        replace(LARGE, dtype='bf16'),
        (Bar(f'openvino@{OFFICIAL_FOCALNET}', 0.9),),
    ),
    *(
        Row(
            f'FocalNet-T deployed in {dtype}, both in OpenVINO',
            f'openvino@{FOCALNET}',
            replace(LARGE, dtype=dtype),
            (Bar(f'openvino@{OFFICIAL_FOCALNET}', 0.9),),
        )
        for dtype in ('fp32', 'bf16')
    ),
    Row(
        'FocalNet-T training step',
        FOCALNET,
        SQUARE,
        (Bar(SWIN, 0.85), Bar(OFFICIAL_FOCALNET, memory=0.6)),
    ),
    Row(
        'Focal-T training step',
        FOCAL,
        Setting((448, 448), train=True),
        (Bar(OFFICIAL_FOCAL, 0.42),),
    ),
    Row('MixFormer-B4 forward', MIXFORMER, LARGE, (Bar(SWIN, 0.6),), floor=1.45),
    Row('MixFormer-B4 training step', MIXFORMER, SQUARE, (Bar(SWIN, 0.85),)),
    *(
        Row(
            f'{name} {work} in bf16',
            net,
            replace(setting, dtype='bf16'),
            (Bar(net, 0.55, dtype='fp32'),),
        )
        for name, net in NETS.items()
        for work, setting in (('forward', LARGE), ('training step', SQUARE))
    ),
    *(
        Row(f'{name} {work} compiled', f'compiled@{net}', setting, (Bar(net, 1.0),))
        for name, net in NETS.items()
        for work, setting in (('forward', LARGE), ('training step', SQUARE))
    ),
)


def run(options: Options, works: Sequence[str] = ()) -> Iterator[Figure]:
    """Measure, and yield each figure as soon as it is known. What fails is a figure with a note.

    Args:
        options (Options): How to measure.
        works (sequence of str): Parts of the names of what is measured. Default: everything.
    """
    parts: list[tuple[str, Callable[[Options], Iterator[Figure]]]] = [
        *((row.work, partial(measure, row)) for row in ROWS),
        *((f'{name} whole', partial(_whole, name)) for name in WHOLE),
        *((f'{name} against pixels', partial(_pixels, name)) for name in NETS),
        *((f'FocalNet-T in int8, {name}', partial(_int8, name)) for name in INT8),
        *((f'{name} maps in bf16', partial(_errors, name)) for name in NETS),
        ('demo in bf16', _demo),
        ('data', _data),
        *((f'{name} at a new size', partial(_new_size, name)) for name in NETS),
        *((f'{name} compiles', partial(_compiles, name)) for name in NETS),
        ('import', _imports),
    ]
    for work, part in parts:
        if works and not any(wanted in work for wanted in works):
            continue
        yield from attempt(work, part(options))
        torch.compiler.reset()  # or the sizes of what is compiled next would be symbols
        gc.collect()


def attempt(work: str, figures: Iterable[Figure]) -> Iterator[Figure]:
    """Yield figures, and if measuring them fails, one that says why.

    Args:
        work (str): What is measured.
        figures (iterable of Figure): They are measured while they are taken.
    """
    try:
        yield from figures
    except Exception as error:
        yield Figure(work, '', note=shorten(f'{type(error).__name__}: {error}', 200))


def _network(text: str, options: Options) -> 'nn.Module | Foreign':
    """Build a network, an official one in the folder of the authors' repositories."""
    for official in (OFFICIAL_FOCALNET, OFFICIAL_FOCAL):
        if official in text:
            if options.official is None:
                raise ValueError('needs the folder of the official code (--official)')
            text = text.replace(official, str(options.official / official))
    return build(text.replace('img_size=448', f'img_size={448 // options.shrink}'))


def _name(network: str) -> str:
    for text, name in NAMES.items():
        network = network.replace(text, name)
    return network


def measure(row: Row, options: Options) -> Iterator[Figure]:
    """Measure a network beside those of its row."""
    setting = options.setting(row.setting)
    ours = _network(row.network, options)
    if row.floor is not None:
        value = benchmark.floor(ours, setting)
        (result,) = compare({'ours': make_step(ours, setting)}, options.rounds, options.device)
        yield Figure(row.work, 'floor', result.median / value, row.floor)
    for bar in row.bars:
        beside = _name(bar.network) + (f' in {bar.dtype}' if bar.dtype else '')
        try:
            steps = {
                'ours': make_step(ours, setting),
                'peer': make_step(
                    _network(bar.network, options),
                    replace(setting, dtype=bar.dtype or setting.dtype),
                ),
            }
            first, peer = compare(steps, options.rounds, options.device)
        except ValueError as error:
            yield Figure(row.work, beside, note=str(error))
            continue
        yield Figure(row.work, f'{beside}, time', first.ratio(peer), bar.time)
        if first.memory and peer.memory:
            yield Figure(row.work, f'{beside}, memory', first.memory / peer.memory, bar.memory)


def _whole(name: str, options: Options) -> Iterator[Figure]:
    """Compare a whole model with the same with Swin-T, and with the official backbone."""
    config, swin, whole = WHOLE[name]
    nets = {'ours': build(config), 'Swin-T': build(swin)}
    if options.official is not None:
        nets['official'] = official = cast(Any, build(config))
        official.backbone = _network(OFFICIAL_FOCALNET, options)
    for train in (False, True):
        setting = options.setting(replace(whole, train=train))
        steps = {key: make_step(net, setting) for key, net in nets.items()}
        first, *peers = compare(steps, options.rounds, options.device)
        work = f'{name} {"training" if train else "inference"}, whole'
        for peer in peers:
            yield Figure(work, f'{peer.name}, time', first.ratio(peer), 0.9)


def _pixels(name: str, options: Options) -> Iterator[Figure]:
    """Measure how far the cost of squares is from a constant and a slope."""
    net = build(NETS[name])
    pixels, seconds = [], []
    for side in SIDES:
        setting = options.setting(Setting((side, side)))
        (result,) = compare({'ours': make_step(net, setting)}, options.rounds, options.device)
        pixels.append(setting.size[0] * setting.size[1] / 1e6)
        seconds.append(result.median)
    # Least squares of the ratios: each row is divided by its time.
    times = torch.tensor(seconds, dtype=torch.double)
    rows = torch.stack([torch.ones(len(SIDES)), torch.tensor(pixels)], 1) / times[:, None]
    line = rows @ torch.linalg.lstsq(rows, torch.ones(len(SIDES), 1, dtype=torch.double)).solution
    yield Figure(
        f'{name} against pixels', 'a straight line, off', (line - 1).abs().max().item(), 0.1
    )


def _int8(name: str, options: Options) -> Iterator[Figure]:
    """Compare FocalNet-T with products of 8 bits with itself in fp32: time and maps."""
    setting, net = options.setting(LARGE), cast(nn.Module, build(FOCALNET))
    images = options.photographs('val2017', setting.size, 6)
    quantized = INT8[name](net, options.photographs('train2017', setting.size, CALIBRATION))
    steps = {'int8': make_step(quantized, setting), 'fp32': make_step(net, setting)}
    first, ours = compare(steps, options.rounds, options.device)
    work = f'FocalNet-T in int8, {name}'
    yield Figure(work, 'fp32, time', first.ratio(ours), 0.5)
    with torch.no_grad():
        worst = max(
            angle(expected, found)
            for image in images
            for expected, found in zip(net(image), quantized(image))
        )
    yield Figure(work, '1 minus the cosine of the maps', worst, 0.001)


def _errors(name: str, options: Options) -> Iterator[Figure]:
    """Measure how far the maps of photographs in bf16 are from those in fp32."""
    setting, net = options.setting(LARGE), cast(nn.Module, build(NETS[name])).eval()
    worst = 0.0
    with torch.no_grad():
        for image in options.photographs('val2017', setting.size, 6):
            expected = net(image)
            with torch.autocast('cpu', torch.bfloat16):
                found = net(image)
            for a, b in zip(found, expected):
                worst = max(worst, float((a - b).norm() / b.norm()))
    yield Figure(f'{name} maps in bf16', 'fp32, norm of the difference', worst, 0.02)


def _demo(options: Options) -> Iterator[Figure]:
    """Train the demo, and measure how far its AP with a backbone in bf16 is from that in fp32."""
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        runner = build_runner(load_config(work_dir=folder, **DEMO))
        runner.train()
        expected = runner.val_loop.run()
        backbone = cast(Any, runner.model).backbone
        in_bf16 = torch.autocast('cpu', torch.bfloat16)(backbone.forward)
        # The heads stay as they are: mmdet converts their results to NumPy, which has no bf16.
        backbone.forward = lambda x: tuple(map_.float() for map_ in in_bf16(x))
        found = runner.val_loop.run()
    for kind in ('bbox', 'segm'):
        key = f'coco/{kind}_mAP'
        difference = abs(found[key] - expected[key])
        yield Figure('demo in bf16', f'{kind} AP in fp32, difference', difference, 0.02)


def _data(options: Options) -> Iterator[Figure]:
    """Compare ways to load COCO with the training pipeline of mmdet, on one core."""
    annotations = 'LoadAnnotations'
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        'masks as crops': (annotations, dict(type='focal_mm.LoadAnnotations')),
        'masks as polygons': (annotations, dict(poly2mask=False)),
        'TurboJPEG': ('LoadImageFromFile', dict(imdecode_backend='turbojpeg')),
    }
    for way, (transform, change) in ways.items():
        yield from attempt(f'data, {way}', _loading(way, transform, change, options))


def _loading(
    way: str, transform: str, change: dict[str, Any], options: Options
) -> Iterator[Figure]:
    import mmcv
    from mmdet.registry import DATASETS

    if options.coco is None:
        raise ValueError('needs photographs (--coco)')
    cfg = load_config('focal_mm::mask_rcnn/focalnet_t_1x.py').train_dataloader.dataset
    cfg.data_root = f'{options.coco}/'
    steps: dict[str, Callable[[], None]] = {'mmdet': partial(_load, DATASETS.build(cfg))}
    (changed,) = (one for one in cfg.pipeline if one.type == transform)
    changed.update(change)
    if 'imdecode_backend' in change:
        try:
            mmcv.use_backend(change['imdecode_backend'])  # which makes the decoder
        finally:
            mmcv.use_backend('cv2')  # it is chosen even where it cannot be made
    steps['ours'] = partial(_load, DATASETS.build(cfg))
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        other, first = compare(steps, options.rounds)
    finally:
        cv2.setNumThreads(threads)
    yield Figure(f'data, {way}', 'the pipeline of mmdet, time', first.ratio(other), 0.667)


def _load(dataset: Any) -> None:
    seed_generators(0)
    for index in range(min(len(dataset), 80)):
        # Crops become bitmaps when they are read, which counts too.
        _ = dataset[index]['data_samples'].gt_instances.masks.masks


def _new_size(name: str, options: Options) -> Iterator[Figure]:
    """Measure what the first forward at a size takes beyond a later one."""
    net = build(NETS[name])
    make_step(net, options.setting(Setting((224, 224))))()  # what only a process's first one takes
    large, extra = options.setting(LARGE), []
    height, width = large.size
    # A first forward can't be repeated at its size, so that only more sizes make the median firm.
    for more, less in itertools.product(range(options.rounds), range(3)):
        step = make_step(net, replace(large, size=(height + 32 * more, width - 32 * less)))
        first, *later = [_seconds(step) for _ in range(3)]
        extra.append(first / statistics.median(later) - 1)
    yield Figure(f'{name} at a new size', 'a later forward, more', statistics.median(extra), 0.05)


def _compiles(name: str, options: Options) -> Iterator[Figure]:
    """Measure how long a network compiles of which nothing was compiled before."""
    from torch._inductor.utils import fresh_inductor_cache  # takes seconds to import

    step = make_step(build(f'compiled@{NETS[name]}'), options.setting(LARGE))
    with fresh_inductor_cache():
        yield Figure(f'{name} compiles', 'seconds', _seconds(step), 120)


def _imports(options: Options) -> Iterator[Figure]:
    """Compare processes that import packages."""
    # Without compiled operations of mmcv only this package lets mmdet's models be imported.
    whole = 'focal_mm, mmdet.models'
    results: dict[str, list[float]] = {'focal_mm': [], 'mmengine, mmcv': [], whole: []}
    for _ in range(options.rounds):
        for modules, seconds in results.items():
            command = partial(
                subprocess.run, [sys.executable, '-c', f'import {modules}'], check=True
            )
            seconds.append(_seconds(command))
    ours = results.pop('focal_mm')
    for modules, seconds in results.items():
        ratio = statistics.median(a / b for a, b in zip(ours, seconds))
        bar = None if modules == whole else 1.0
        yield Figure('import focal_mm', f'import {modules}', ratio, bar)


def _seconds(step: Callable[[], Any]) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def save(figures: Sequence[Figure], options: Options, path: Path) -> None:
    """Write figures to a JSON file."""
    rows = [figure.record() for figure in figures]
    content = dict(machine=benchmark.machine(options.device), figures=rows)
    path.write_text(json.dumps(content, indent=1))
