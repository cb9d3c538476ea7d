"""What a first hour on a GPU shows, on one page: ``make gpu``.

Each part ends with a verdict of its own, and a part that fails does not stop the next. With
``--device cpu --shrink 16`` the parts that can run are tried on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import GOLDEN, load
from torch import Tensor

from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer
from focal_mm.backbones.focalnet import FocalModulation
from focal_mm.cli import benchmark, suite
from focal_mm.cli.output import print_table
from focal_mm.cli.suite import Bar, Figure, Options, Row
from focal_mm.kernels import use
from focal_mm.weights.paddle import to_torch

FAMILIES = dict(focalnet=FocalNet, focal=FocalTransformer, mixformer=MixFormer)
# Largest differences to the official maps in fp32: absolute, and in lower precision: the norm of
# the difference over the norm of the map.
PRECISIONS = dict(fp32=2e-4, tf32=0.01, bf16=0.03, fp16=0.01)
# Largest errors of a kernel's values and gradients, over their largest value.
TOLERANCES = {torch.float: 1e-5, torch.half: 0.01, torch.bfloat16: 0.03}
HEADS, DIM, QUERIES, KEYS = 3, 32, 49, 350  # of a window of Focal Transformer's first stage


def precision_of(name: str) -> torch.dtype:
    """Set whether products may be tf32, and return the type of autocast."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == 'tf32'
    return dict(bf16=torch.bfloat16, fp16=torch.half).get(name, torch.float)


def golden(options: Options) -> Iterator[Figure]:
    """Compare the maps of the stored cases with the official ones."""
    for file in sorted(GOLDEN.glob('*.json')):
        family = file.stem.split('_')[0]
        if family not in FAMILIES or 'logits' in file.stem:
            continue
        case = load(file.stem)
        net = FAMILIES[family](**case.arguments).eval()
        net.load_state_dict(to_torch(case.checkpoint) if family == 'mixformer' else case.checkpoint)
        net.to(options.device)
        for kernels in ('fast', 'triton') if family == 'focalnet' else ('fast',):
            if kernels == 'triton' and options.device == 'cpu':
                continue
            for name, bar in PRECISIONS.items():
                dtype = precision_of(name)
                with (
                    use(kernels),
                    torch.no_grad(),
                    torch.autocast(options.device, dtype, enabled=dtype != torch.float),
                ):
                    maps = [m.float().cpu() for m in net(case.image.to(options.device))]
                worst = case.worst(maps) if name == 'fp32' else case.worst_ratio(maps)
                yield Figure(
                    f'{file.stem}, {kernels} kernels', f'official maps, {name}', worst, bar
                )
    precision_of('fp32')


def triton(options: Options) -> Iterator[Figure]:
    """Compare the Triton kernels with float64 on the stages of all archs, and on odd maps."""
    if options.device == 'cpu':
        raise ValueError('no GPU')
    with torch.device('meta'):
        nets = [FocalNet(arch) for arch in FocalNet.archs]
    stages = {(*sizes_of(layer), 56 >> i) for net in nets for i, layer in enumerate(net.layers)}
    for channels, levels, kernel, side in sorted(stages):
        for grown, dtype, layout in product((0, 6), TOLERANCES, ('sliced', 'nchw', 'nhwc')):
            size = (side, side) if layout == 'nhwc' else (2 * side + 1, max(side - 1, 1))
            worst = errors(channels, levels, kernel + grown, size, dtype, layout, options.device)
            work = (
                f'{levels} levels from {kernel + grown}, {channels}x{size[0]}x{size[1]}, {layout}'
            )
            yield Figure(work, f'float64, {dtype}', worst, TOLERANCES[dtype])
    for device in range(1, torch.cuda.device_count()):
        worst = errors(96, 3, 9, (57, 50), torch.float, 'sliced', f'cuda:{device}')
        yield Figure(f'on device {device}', 'float64', worst, TOLERANCES[torch.float])


def sizes_of(layer: torch.nn.Module) -> tuple[int, int, int]:
    """Return the channels, focal levels and first kernel of a stage."""
    step = next(m for m in layer.modules() if isinstance(m, FocalModulation))
    return step.dim, step.focal_level, step.focal_layers[0][0].kernel_size[0]


def errors(
    channels: int,
    levels: int,
    kernel: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    layout: str,
    device: str,
) -> float:
    """Return the largest error of values and gradients, over their largest value."""
    torch.manual_seed(0)
    step = FocalModulation(channels, levels, kernel).to(device, dtype)
    joint = torch.randn(2, *size, channels + levels + 1, device=device, dtype=dtype)
    parts = [part.permute(0, 3, 1, 2) for part in joint.split((channels, levels + 1), -1)]
    if layout != 'sliced':
        memory = torch.channels_last if layout == 'nhwc' else torch.contiguous_format
        parts = [part.contiguous(memory_format=memory) for part in parts]
    tensors = [*(p.detach().requires_grad_() for p in parts), *step.focal_layers.parameters()]
    with use('triton'):
        ours = step.gather(*tensors[:2])
        grad = torch.randn_like(ours)
        found = [ours, *torch.autograd.grad(ours, tensors, grad)]
    exact = step.double()
    exact_tensors = [
        *(t.detach().double().requires_grad_() for t in tensors[:2]),
        *exact.focal_layers.parameters(),
    ]
    with use('reference'):
        wanted = exact.gather(*exact_tensors[:2])
        right = [wanted, *torch.autograd.grad(wanted, exact_tensors, grad.double())]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, right))


def networks(options: Options) -> Iterator[Figure]:
    """Measure networks beside the official code, timm and Swin-T, in bf16 and on three roads."""
    large = replace(suite.LARGE, dtype='bf16')
    step = replace(suite.SQUARE, dtype='bf16')
    rows = [
        *(
            Row(f'FocalNet-T forward, {road or "eager"}', road + suite.FOCALNET, large, bars)
            for road in ('', 'compiled@', 'graphs@')
            for bars in [
                tuple(
                    Bar(road + network, bar)
                    for network, bar in (
                        (suite.OFFICIAL_FOCALNET, 0.9),
                        (suite.TIMM, None),
                        (suite.SWIN, 1.0),
                    )
                )
            ]
        ),
        *(
            Row(f'{name} training step', net, step, (Bar(official, 0.9, 0.9), Bar(suite.SWIN, 1.0)))
            for name, net, official in (
                ('FocalNet-T', suite.FOCALNET, suite.OFFICIAL_FOCALNET),
                ('Focal-T', suite.FOCAL, suite.OFFICIAL_FOCAL),
            )
        ),
    ]
    for kernels in ('fast', 'triton'):
        if kernels == 'triton' and options.device == 'cpu':
            continue
        with use(kernels):
            for row in rows:
                for figure in suite.attempt(row.work, suite.measure(row, options)):
                    yield replace(figure, work=f'{figure.work}, {kernels} kernels')


def attention(options: Options) -> Iterator[Figure]:
    """Measure a window's attention by plain products, by SDPA with a mask, and by FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    device = options.device
    dtype = torch.bfloat16 if device == 'cuda' else torch.float
    windows = 2048 // options.shrink**2 or 1
    query, key, value = (
        torch.randn(windows, HEADS, n, DIM, device=device, dtype=dtype)
        for n in (QUERIES, KEYS, KEYS)
    )
    bias = torch.randn(HEADS, QUERIES, KEYS, device=device, dtype=dtype)

    def plain() -> Tensor:
        return (query @ key.mT * DIM**-0.5 + bias).softmax(-1) @ value

    def add_bias(score: Tensor, b: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + bias[head, q, k]

    steps: dict[str, Callable[[], Tensor]] = {
        'plain products': plain,
        'SDPA': partial(F.scaled_dot_product_attention, query, key, value, bias[None]),
        'FlexAttention': partial(
            torch.compile(flex_attention) if device == 'cuda' else flex_attention,
            query,
            key,
            value,
            score_mod=add_bias,
        ),
    }
    exact = plain().float()

    def timed(step: Callable[[], Tensor]) -> None:
        step()
        if device == 'cuda':
            torch.cuda.synchronize()

    with torch.no_grad():
        for name, step in list(steps.items())[1:]:
            worst = float((step().float() - exact).norm() / exact.norm())
            yield Figure(f'{name} of a window', 'plain products, values', worst, 0.02)
        first, *others = benchmark.compare(
            {name: partial(timed, step) for name, step in steps.items()}, options.rounds, device
        )
    for other in others:
        yield Figure(f'{other.name} of a window', 'plain products, time', other.ratio(first))


def training(options: Options) -> Iterator[Figure]:
    """Train an epoch of the mini dataset on the device and on the CPU, from the same seed."""
    losses, scores = {}, {}
    for device in ('cpu', options.device):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(sys.executable, '-m', 'focal_mm', 'train', CONFIG, '--mini'),
                *('--work-dir', folder, '--cfg-options', 'randomness.seed=0'),
                *('train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
                'default_hooks.logger.interval=1',
            ]
            hidden = {'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else {}
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **hidden}
            )
            (file,) = Path(folder).glob('*/vis_data/scalars.json')
            lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses[device] = [line['loss'] for line in lines if 'loss' in line]
        scores[device] = next(line[METRIC] for line in lines if METRIC in line)
    for count in (1, len(losses['cpu'])):
        cpu, gpu = (sum(losses[d][:count]) for d in ('cpu', options.device))
        yield Figure(f'losses of {count} iterations', 'CPU, off', abs(gpu / cpu - 1), 0.05)
    difference = abs(scores[options.device] - scores['cpu'])
    yield Figure('box AP after an epoch', 'CPU, off', difference, 0.05)


CONFIG, METRIC = 'focal_mm::mask_rcnn/focalnet_t_1x.py', 'coco/bbox_mAP'
PARTS = dict(
    golden=golden, triton=triton, attention=attention, training=training, networks=networks
)


def main(argv: list[str] | None = None) -> None:
    """Run the parts, print the page, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('parts', nargs='*', help=f'default: all of {", ".join(PARTS)}')
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    parser.add_argument('--official', type=Path, metavar='DIR', help='as of focal-mm bench')
    parser.add_argument('--shrink', type=int, default=1, help='as of focal-mm bench')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=Path, default=Path('gpu.json'), metavar='FILE')
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f'no part {", ".join(sorted(unknown))}; there are {", ".join(PARTS)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no GPU; --device cpu --shrink 16 tries what runs on a CPU')
    options = Options(args.rounds, args.device, args.official, args.shrink)
    page: dict[str, list[Figure]] = {}
    for name in args.parts or PARTS:
        page[name] = list(suite.attempt(name, PARTS[name](options)))
        content = dict(
            machine=benchmark.machine(args.device),
            parts={part: [figure.record() for figure in figures] for part, figures in page.items()},
        )
        args.json.write_text(json.dumps(content, indent=1))
        print(f'\n{name}: {verdict(page[name])}', flush=True)
        print_table(
            ('work', 'beside', 'figure', 'bar', 'verdict'),
            (
                (
                    f.work,
                    f.beside,
                    f'{f.value:.2g}' if f.value is not None else '',
                    f.bar or '',
                    f.note or f.verdict,
                )
                for f in page[name]
            ),
        )
    print()
    for name, figures in page.items():
        print(f'{name}: {verdict(figures)}')


def verdict(figures: list[Figure]) -> str:
    """Return how many of the figures met their bars."""
    counts = Counter(figure.verdict for figure in figures)
    return ', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))


if __name__ == '__main__':
    main()
