"""Write a model as an ONNX file, and compare the file with PyTorch on a picture.

The file takes pictures of any size and number, as float values from 0 to 255. It holds classifiers
and segmentors whole. Of detectors it holds the maps of the neck and what the head says of them,
without the selection of boxes; the second stage of a detector is a second file, OUT.regions.onnx.

Examples:
  focal-mm export my_config.py best.pth model.onnx --image photo.jpg
  focal-mm export my_config.py best.pth small.onnx --int8 data/coco/val2017
  focal-mm export focal_mm::imagenet/focalnet_t.py focalnet_tiny_lrf_in1k focalnet_t.onnx
"""

from argparse import ArgumentParser, Namespace

from ..arguments import (
    add_checkpoint_argument,
    add_config_argument,
    add_setting_arguments,
    checkpoint_of,
    path,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, the file and the picture."""
    add_config_argument(parser)
    add_checkpoint_argument(parser)
    parser.add_argument('out', type=path, help='the new file, .onnx')
    parser.add_argument(
        '--image',
        type=path,
        metavar='FILE',
        help='picture to compare on; default: a drawn one',
    )
    parser.add_argument(
        '--int8',
        nargs='+',
        metavar='PICTURE',
        help='compute products in 8 bits, with scales from these pictures: files, folders, '
        'patterns, of which 12 are taken',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        help='largest difference that is no fault: 0.001 relative to the largest value; '
        '0.05 from a cosine of 1 with --int8',
    )
    parser.add_argument('--json', action='store_true', help='print the differences as JSON')
    add_setting_arguments(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Write the files and print how far they are from PyTorch; exit status 1 if too far."""
    import sys
    from importlib.util import find_spec

    from ...export import CALIBRATION
    from ...weights import trust
    from .. import export
    from ..output import print_json, print_table, quiet_libraries
    from ..pictures import find_sources
    from ..runner import load_config

    if args.out.suffix != '.onnx':
        raise ValueError(f'{args.out}: the new file is to end in .onnx')
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if not find_spec(name)]
    if missing:
        raise ModuleNotFoundError(
            f'{" and ".join(missing)} not installed; pip install {" ".join(missing)}'
        )
    sources = find_sources(args.int8, args.out) if args.int8 else []
    pictures = [source.path for source in sources if not source.is_video]
    pictures = pictures[:: max(1, len(pictures) // CALIBRATION)][:CALIBRATION]
    if args.int8 and not pictures:
        raise ValueError(f'{" ".join(args.int8)}: no pictures for --int8')
    trust(*args.trust)
    checkpoint = checkpoint_of(args)
    with quiet_libraries():
        cfg = load_config(args.config, options=args.cfg_options)
        checks = export.export(cfg, checkpoint, args.out, args.image, pictures)
    if args.json:
        print_json(checks)
    else:
        rows = [
            [check['file'].name, name, 'x'.join(map(str, check['shapes'][name])), f'{value:.1e}']
            for check in checks
            for name, value in check['differences'].items()
        ]
        print_table(['file', 'output', 'shape', 'difference'], rows)
        for check in checks:
            worst = max(check['differences'].values())
            measure = '1 minus the smallest cosine' if pictures else 'largest difference'
            print(f'{check["file"]}: {measure} to PyTorch {worst:.1e}')
    tolerance = args.tolerance
    if tolerance is None:
        tolerance = 5e-2 if pictures else 1e-3
    if any(value > tolerance for check in checks for value in check['differences'].values()):
        print(f'a difference is above --tolerance {tolerance:g}', file=sys.stderr)
        sys.exit(1)
