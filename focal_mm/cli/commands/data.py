"""Make parts of COCO and ADE20K for quick comparisons: 1 % or 10 % of the images.

Examples:
  focal-mm data coco-1pct data/coco
  focal-mm data ade20k-10pct data/ade/ADEChallengeData2016
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import PARTS


def add_arguments(parser: ArgumentParser) -> None:
    """Add the part and its folder."""
    parser.add_argument(
        'name', choices=[f'{data}-{part}' for data in ('coco', 'ade20k') for part in PARTS]
    )
    parser.add_argument(
        'folder',
        type=Path,
        help='the data_root of the configs: data/coco, with annotations/, train2017/ and val2017/, '
        'or data/ade/ADEChallengeData2016; what is missing there is downloaded',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Write the annotation files of a part and say how to train on it."""
    from ...datasets import write_ade20k_part, write_coco_part

    data, part = args.name.split('-')
    write = dict(coco=write_coco_part, ade20k=write_ade20k_part)[data]
    for line in write(args.folder, part):
        print(line)
    print(f'focal-mm train and focal-mm reproduce read this part with --data {part}')
