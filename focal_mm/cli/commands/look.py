"""Draw what a network sees in pictures: gates, contexts, attention, features, class activation.

OUT gets sheets for a paper, which say what equation each row is, and a page, look.html, on which
one moves a query over the picture. Without --model it is a published FocalNet-T.

Examples:
  focal-mm look photo.jpg
  focal-mm look photo.jpg --model focal_tiny_in1k --query 0.4 0.6
  focal-mm look a.jpg b.jpg --model my_config.py --checkpoint work_dirs/my_config/epoch_12.pth
  focal-mm look photo.jpg --model my_config.py --checkpoint epoch_1.pth --checkpoint epoch_12.pth
  focal-mm look photo.jpg --out figures/cat.pdf --blocks all
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import (
    add_device_argument,
    add_setting_arguments,
    checkpoint_of,
    device_of,
    path,
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the pictures, the models, and what is drawn."""
    parser.add_argument(
        'images', nargs='+', metavar='IMAGE', help='pictures, folders with pictures, or patterns'
    )
    parser.add_argument(
        '--model',
        action='append',
        type=os.path.expanduser,
        metavar='CONFIG|NAME',
        help='a config, or the name of published weights as `focal-mm weights list` prints it; '
        'given twice, two models are compared; default: focalnet_tiny_lrf_in1k',
    )
    parser.add_argument(
        '--checkpoint',
        action='append',
        type=os.path.expanduser,
        metavar='K',
        help='weights of the model: a file, an address or a name; one for each --model, or several '
        "for one; default: the published ones, or those in the config's init_cfg",
    )
    parser.add_argument(
        '--from-scratch', action='store_true', help='random weights; the pictures say so'
    )
    parser.add_argument(
        '--out',
        type=path,
        default=Path('look'),
        help='a folder; or a file, .png, .svg or .pdf, that names the sheets, with the page beside '
        'them; or .html for the page alone; default: %(default)s',
    )
    parser.add_argument(
        '--query',
        nargs=2,
        type=float,
        default=(0.5, 0.5),
        metavar=('X', 'Y'),
        help='the token whose attention the sheets show, from 0 0 (top left) to 1 1; default: the '
        'middle',
    )
    parser.add_argument(
        '--whole',
        action='store_true',
        help="leave out the crops of the config's test pipeline, so that all of a picture is seen",
    )
    parser.add_argument(
        '--blocks',
        choices=('last', 'all'),
        default='last',
        help='the blocks of each stage that have a sheet; default: %(default)s',
    )
    parser.add_argument(
        '--layer',
        metavar='NAME',
        help='the layer of the class-activation map, as neck.fpn_convs.0; default: the last stage '
        'of the backbone',
    )
    parser.add_argument(
        '--label',
        type=int,
        metavar='N',
        help='the number of the class of this map; default: the one of the highest score',
    )
    add_device_argument(parser)
    add_setting_arguments(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Look, and print the files; exit status 1 if a picture was left out."""
    from ...look.samples import require_inside
    from ...messages import printable
    from ...weights import trust
    from .. import look
    from ..output import quiet_libraries
    from ..pictures import find_sources

    trust(*args.trust)
    require_inside(args.query)
    output = look.Output.parse(args.out)
    sources = [one for one in find_sources(args.images, args.out) if not one.is_video]
    if not sources:
        raise ValueError(f'{" ".join(args.images)}: videos only; give pictures')
    pairs = _pair(args)
    with quiet_libraries():
        models = [
            look.load_model(name, checkpoint, args.from_scratch, device_of(args), args.cfg_options)
            for name, checkpoint in pairs
        ]
        files, skipped = look.look(
            models,
            sources,
            output,
            tuple(args.query),
            args.blocks == 'all',
            args.layer,
            args.label,
            args.whole,
        )
    for picture, reason in skipped.items():
        print(printable(f'{picture}: left out: {reason}'), file=sys.stderr)
    for file in files:
        print(printable(str(file)))
    if skipped:
        sys.exit(1)


def _pair(args: Namespace) -> list[tuple[str, str | None]]:
    """Return the models with their checkpoints."""
    models = args.model or ['focalnet_tiny_lrf_in1k']
    if args.checkpoint is None:
        return [(name, None) for name in models]
    if args.from_scratch:
        raise ValueError('--from-scratch and --checkpoint are two sets of weights; leave one out')
    checkpoints = [checkpoint_of(Namespace(checkpoint=one)) for one in args.checkpoint]
    if len(models) == 1:
        models = models * len(checkpoints)
    if len(models) != len(checkpoints):
        raise ValueError(
            f'{len(models)} --model and {len(checkpoints)} --checkpoint: give one for each model, '
            'or several for one model'
        )
    return list(zip(models, checkpoints))
