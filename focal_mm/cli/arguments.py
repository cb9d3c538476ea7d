"""Command-line parsers: the options that training and testing share, and errors in one line."""

import argparse
import os
from typing import Any, NoReturn

# The parts of COCO and ADE20K, focal_mm.datasets.PARTS.
PARTS = ('1pct', '10pct')


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')


class Settings(argparse.Action):
    """Settings of a config, ``KEY=VALUE``, as mmengine's ``DictAction`` reads them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        from mmengine.config import DictAction

        try:
            DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)
        except ValueError:  # a word without '='
            parser.error(f'{option_string} takes KEY=VALUE pairs, without spaces around "="')


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, under OpenMMLab's names."""
    parser.add_argument(
        'config',
        help='a config file, or a config of a package: '
        'focal_mm::mask_rcnn/focalnet_t_1x.py, mmdet::...',
    )
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; default: '
        "the config's work_dir, else work_dirs/<its path below configs/>",
    )
    parser.add_argument(
        '--mini',
        action='store_true',
        help='train on the built-in mini dataset '
        "of the config's task, for minutes on a CPU, from random weights",
    )
    parser.add_argument(
        '--data',
        choices=PARTS,
        help='train on 1 %% or 10 %% of the images of COCO or ADE20K, a part that '
        '`focal-mm data` makes, for as many epochs',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config; '
        'data_root=DIR moves all data that lies in the old one',
    )
    parser.add_argument(
        '--trust',
        action='append',
        default=[],
        metavar='FILE',
        help='let this checkpoint run the code that it contains; without it, one that could '
        'run code is refused',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how processes are started; default: %(default)s',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )  # older launchers pass it


def start(args: argparse.Namespace) -> None:
    """Set what the arguments of :func:`add_run_arguments` change in the process."""
    from ..weights import trust

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    trust(*args.trust)
