"""Make parts of COCO and ADE20K for quick comparisons: 1 % or 10 % of the images."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..datasets import PARTS, write_ade20k_part, write_coco_part

_SETS = {
    f'{data}-{part}': (write, part)
    for data, write in dict(coco=write_coco_part, ade20k=write_ade20k_part).items()
    for part in PARTS
}


def make(args: Namespace) -> None:
    """Write the annotation files of a part and say how to train on it."""
    write, part = _SETS[args.name]
    for line in write(args.folder, part):
        print(line)
    print(f'tools/train.py and tools/reproduce.py read this part with --data {part}')


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of :func:`make`, which ``args.run(args)`` runs."""
    parser.add_argument('name', choices=_SETS)
    parser.add_argument(
        'folder',
        type=Path,
        help='the data_root of the configs: data/coco, with annotations/, train2017/ and val2017/, '
        'or data/ade/ADEChallengeData2016; what is missing there is downloaded',
    )
    parser.set_defaults(run=make)
