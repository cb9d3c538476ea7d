"""Measure time and memory of a backbone or a whole model, in turn with other networks.

Examples:
  focal-mm bench "FocalNet(arch='tiny_lrf')" --peer mmdet.SwinTransformer --size 800x1216
  focal-mm bench configs/mask_rcnn/focalnet_t_1x.py --size 320 --train --json figures.json
  focal-mm bench --suite --official ~/code --coco data/coco
  focal-mm bench --suite "training step" import --json figures.json
"""

import sys
from argparse import ArgumentParser, Namespace

from ..arguments import device_of, path


def size(text: str) -> tuple[int, int]:
    """Return height and width, in pixels, from ``'HxW'`` or one side of a square."""
    height, _, width = text.partition('x')
    return int(height), int(width or height)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the networks, the settings to measure them in, and the files to write."""
    parser.add_argument(
        'network',
        nargs='?',
        help='a backbone as "FocalNet(arch=\'tiny_lrf\')", '
        'mmdet.SwinTransformer, timm.NAME, FILE.py:CLASS, or a config',
    )
    parser.add_argument(
        '--peer',
        action='append',
        default=[],
        metavar='NETWORK',
        help='network to compare with; may be repeated',
    )
    parser.add_argument(
        '--suite',
        nargs='*',
        metavar='WORK',
        help='measure what docs/performance.md lists, each beside its bar: all of it, or the works '
        'with any of these texts in their names',
    )
    parser.add_argument(
        '--official',
        type=path,
        metavar='DIR',
        help='with --suite: a folder with clones of FocalNet and Focal-Transformer',
    )
    parser.add_argument(
        '--coco',
        type=path,
        metavar='DIR',
        help="with --suite: a folder in COCO's layout, for what needs photographs",
    )
    parser.add_argument(
        '--shrink',
        type=int,
        default=1,
        help='with --suite: divide the sides of all images by this; default: %(default)s',
    )
    parser.add_argument(
        '--size',
        nargs='+',
        type=size,
        metavar='HxW',
        default=[(224, 224), (512, 512), (800, 1216), (1024, 2048)],
        help='default: 224 512 800x1216 1024x2048',
    )
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument(
        '--train', action='store_true', help='measure a training step instead of a forward pass'
    )
    parser.add_argument('--dtype', nargs='+', choices=['fp32', 'bf16', 'fp16'], default=['fp32'])
    parser.add_argument(
        '--compile', action='store_true', help='also measure the networks with torch.compile'
    )
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: cuda where there is a GPU'
    )
    parser.add_argument(
        '--threads', type=int, help='number of CPU threads; default: chosen by torch'
    )
    parser.add_argument(
        '--rounds', type=int, default=5, help='number of timed rounds; default: %(default)s'
    )
    parser.add_argument(
        '--floor',
        action='store_true',
        help='also measure the time that matrix products and depth-wise convolutions take alone',
    )
    parser.add_argument('--json', type=path, metavar='FILE', help='write all figures to this file')
    parser.add_argument(
        '--plot', type=path, metavar='FILE', help='draw cost against image size to this file'
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Measure, and print a table a setting."""
    import torch
    from torch import nn

    from .. import benchmark, networks
    from ..output import track

    device = device_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.suite is not None:
        _run_suite(args, device)
        return
    if args.network is None:
        raise ValueError('bench: name a network to measure, or --suite')
    nets = {name: networks.build(name) for name in (args.network, *args.peer)}
    if args.compile:
        nets |= {
            f'compiled@{name}': networks.build(f'compiled@{name}')
            for name, net in nets.items()
            if isinstance(net, nn.Module)
        }
    reports = []
    settings = [
        benchmark.Setting(size, args.batch, args.train, dtype, device)
        for dtype in args.dtype
        for size in args.size
    ]
    for setting in track(settings, 'measuring'):
        steps = {name: benchmark.make_step(net, setting) for name, net in nets.items()}
        report = benchmark.Report(setting, benchmark.compare(steps, args.rounds, device))
        if args.floor:
            report.floor = benchmark.floor(nets[args.network], setting)
        print(report.table(), flush=True)
        reports.append(report)
    if args.json:
        benchmark.save(reports, args.json)
    if args.plot:
        benchmark.plot(reports, args.plot)


def _run_suite(args: Namespace, device: str) -> None:
    from .. import suite
    from ..output import print_table

    options = suite.Options(args.rounds, device, args.official, args.shrink, args.coco)
    figures = []
    for figure in suite.run(options, args.suite):
        value = figure.note if figure.value is None else f'{figure.value:.3g}'
        print(f'{figure.work} / {figure.beside}: {value}', file=sys.stderr, flush=True)
        figures.append(figure)
    print_table(
        ('work', 'beside', 'figure', 'bar', 'verdict'),
        (
            (
                f.work,
                f.beside,
                '' if f.value is None else f'{f.value:.3g}',
                '' if f.bar is None else f.bar,
                f.note or f.verdict,
            )
            for f in figures
        ),
    )
    if args.json:
        suite.save(figures, options, args.json)
