"""Command-line parsers: the options that training and testing share, and errors in one line."""

import argparse
import os
from typing import Any, NoReturn

from mmengine.config import DictAction

from ..datasets import PARTS
from ..weights import trust


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')


class RunParser(ArgumentParser):
    """A parser with the options that training and testing share, under OpenMMLab's names.

    Args:
        description (str): Text that ``--help`` begins with.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.add_argument(
            'config',
            help='a config file, or a config of a package: '
            'focal_mm::mask_rcnn/focalnet_t_1x.py, mmdet::...',
        )
        self.add_argument(
            '--work-dir',
            help='folder for logs and checkpoints; default: '
            "the config's work_dir, else work_dirs/<its path below configs/>",
        )
        self.add_argument(
            '--mini',
            action='store_true',
            help='train on the built-in mini dataset '
            "of the config's task, for minutes on a CPU, from random weights",
        )
        self.add_argument(
            '--data',
            choices=PARTS,
            help='train on 1 %% or 10 %% of the images of COCO or ADE20K, a part that '
            '`focal-mm data` makes, for as many epochs',
        )
        self.add_argument(
            '--cfg-options',
            nargs='+',
            action=DictAction,
            default={},
            metavar='KEY=VALUE',
            help='override settings of the config; '
            'data_root=DIR moves all data that lies in the old one',
        )
        self.add_argument(
            '--trust',
            action='append',
            default=[],
            metavar='FILE',
            help='let this checkpoint run the code that it contains; without it, one that could '
            'run code is refused',
        )
        self.add_argument(
            '--launcher',
            choices=['none', 'pytorch', 'slurm', 'mpi'],
            default='none',
            help='how processes are started; default: %(default)s',
        )
        self.add_argument(
            '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
        )  # older launchers pass it

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        try:
            parsed = super().parse_args(*args, **kwargs)
        except ValueError:  # mmengine's DictAction on a word without '='
            self.error('--cfg-options takes KEY=VALUE pairs, without spaces around "="')
        os.environ.setdefault('LOCAL_RANK', str(parsed.local_rank))
        trust(*parsed.trust)
        return parsed
