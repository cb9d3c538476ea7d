"""Draw and save what a model finds in pictures and videos.

The folder OUT gets drawn/, a contact sheet, and predictions.json: objects in COCO's format, the
classes of classifiers, or for segmentors the classes of label maps in labels/. A file that cannot
be read is named and left out, with exit status 1.

Examples:
  focal-mm predict my_config.py work_dirs/my_config/epoch_12.pth photos/
  focal-mm predict my_config.py best.pth a.jpg b.png clip.mp4 --score 0.5 --out ~/found
  focal-mm predict focal_mm::imagenet/focalnet_t.py focalnet_tiny_lrf_in1k 'photos/**/*.jpg'
"""

import os
import sys
from argparse import ArgumentParser, Namespace

from ..arguments import (
    add_checkpoint_argument,
    add_config_argument,
    add_device_argument,
    add_setting_arguments,
    checkpoint_of,
    device_of,
    path,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, what it predicts, and where the results go."""
    add_config_argument(parser)
    add_checkpoint_argument(parser)
    parser.add_argument(
        'sources',
        nargs='+',
        metavar='FILE',
        help='pictures, videos, folders with such files (and folders in them), or patterns',
    )
    parser.add_argument(
        '--out',
        type=path,
        metavar='DIR',
        default='predictions',
        help='folder for the results; default: %(default)s',
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='objects with a lower score are left out; default: %(default)s',
    )
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        help='number of pictures of one size at once; default: %(default)s',
    )
    add_device_argument(parser)
    parser.add_argument('--json', action='store_true', help='print the summary as JSON')
    add_setting_arguments(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Predict, and print how it went; exit status 1 if a file was left out."""
    from dataclasses import asdict

    from ...messages import printable
    from ...weights import trust
    from .. import predict
    from ..output import print_json, quiet_libraries
    from ..pictures import find_sources
    from ..runner import load_config

    if args.batch < 1:
        raise ValueError(f'--batch {args.batch}: at least one picture at once')
    trust(*args.trust)
    sources = find_sources(args.sources, args.out)
    checkpoint, device = checkpoint_of(args), device_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # silent; a fault is named below
    with quiet_libraries():
        cfg = load_config(args.config, options=args.cfg_options)
        predictor = predict.Predictor(cfg, checkpoint, device)
        summary = predict.predict(predictor, sources, args.out, args.score, args.batch)
    for file, reason in summary.skipped.items():
        print(printable(f'{file}: left out: {reason}'), file=sys.stderr)
    if args.json:
        print_json(asdict(summary) | dict(pictures_per_second=summary.throughput))
    else:
        objects = '' if summary.objects is None else f', {summary.objects} objects'
        plural = '' if summary.pictures == 1 else 's'
        print(
            f'{summary.pictures} picture{plural}{objects} in {summary.seconds:.1f} s '
            f'({summary.throughput:.2f} a second; {summary.model_seconds:.1f} s of it the model)'
        )
        for name in summary.files:
            print(printable(str(args.out / name)))
    if summary.skipped:
        sys.exit(1)
