"""Command-line parsers: the options that training and testing share, and errors in one line."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# The parts of COCO and ADE20K, focal_mm.datasets.PARTS.
PARTS = ('1pct', '10pct')


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, without the usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # A subparser reports unknown words itself; argparse leaves them to the parser above it,
        # which does not know the options that they may have been meant for.
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f'unrecognized arguments: {" ".join(unknown)}{self._hint(unknown)}')
        return found, unknown

    def _hint(self, unknown: Sequence[str]) -> str:
        for word in unknown:
            name = word.partition('=')[0]
            for near in difflib.get_close_matches(name, self._option_string_actions, n=1):
                return f'; did you mean {near}?'
        return ''

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')


def path(text: str) -> Path:
    """Return the path of an argument; a leading ``~`` is the home folder."""
    return Path(text).expanduser()


class Settings(argparse.Action):
    """Settings of a config, ``KEY=VALUE``, as mmengine's ``DictAction`` reads them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        from mmengine.config import DictAction

        try:
            DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)
        except ValueError:  # a word without '='
            parser.error(f'{option_string} takes KEY=VALUE pairs, without spaces around "="')
        settings = getattr(namespace, self.dest)
        for key, value in settings.items():
            if isinstance(value, str):
                settings[key] = os.path.expanduser(value)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, under OpenMMLab's names."""
    add_config_argument(parser)
    parser.add_argument(
        '--work-dir',
        type=os.path.expanduser,
        help='folder for logs and checkpoints; default: '
        "the config's work_dir, else work_dirs/<its path below configs/>",
    )
    parser.add_argument(
        '--backbone',
        metavar='NAME',
        help='put a published backbone, as focalnet_tiny_lrf_in1k, in place of the one of any '
        'config; prints what it changes (docs/detectors.md)',
    )
    parser.add_argument(
        '--dump',
        metavar='FILE',
        help='also write the config, with the options applied, to a .py, .json or .yml file',
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
    add_setting_arguments(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='how processes are started; default: pytorch under torchrun, else none',
    )
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )  # older launchers pass it


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add the config, which any command that builds a model takes."""
    parser.add_argument(
        'config',
        type=os.path.expanduser,
        help='a config file, or a config of a package: '
        'focal_mm::mask_rcnn/focalnet_t_1x.py, mmdet::...',
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint that a command reads; :func:`checkpoint_of` returns it."""
    parser.add_argument(
        'checkpoint',
        type=os.path.expanduser,
        help='a file, an address, or the name of published weights, as `focal-mm weights list` '
        'prints it',
    )


def add_settings_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``--cfg-options``, the settings of a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        default={},
        metavar='KEY=VALUE',
        help=help,
    )


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what changes a config, and the checkpoints that may run code."""
    add_settings_argument(
        parser,
        'override settings of the config; data_root=DIR moves all data that lies in the old one',
    )
    parser.add_argument(
        '--trust',
        action='append',
        type=os.path.expanduser,
        default=[],
        metavar='FILE',
        help='let this checkpoint run the code that it contains; without it, one that could '
        'run code is refused',
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the device; :func:`device_of` returns it."""
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1, ...; default: a GPU where there is one'
    )


def start(args: argparse.Namespace) -> None:
    """Set what the arguments of :func:`add_run_arguments` change in the process.

    Raises:
        ValueError: If processes should have been started by torchrun, and were not.
    """
    from ..weights import trust

    if args.launcher is None:
        args.launcher = 'pytorch' if 'TORCHELASTIC_RUN_ID' in os.environ else 'none'
    if args.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ValueError(
            '--launcher pytorch: this process is none of torchrun; start the command as '
            '`torchrun --nproc_per_node=GPUS -m focal_mm ...`'
        )
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    trust(*args.trust)


def checkpoint_of(args: argparse.Namespace) -> str:
    """Return the checkpoint of :func:`add_checkpoint_argument` as mmengine takes it.

    Raises:
        FileNotFoundError: If it is neither a file nor a name of published weights.
    """
    from ..weights import ZOO

    name = args.checkpoint
    if '://' in name or Path(name).is_file():
        return name
    if name in ZOO:
        return f'focal://{name}'
    near = difflib.get_close_matches(name, ZOO, n=3)
    hint = f'; did you mean {", ".join(near)}?' if near else ''
    raise FileNotFoundError(f'{name}: no such checkpoint{hint}')


def device_of(args: argparse.Namespace) -> str:
    """Return the device of :func:`add_device_argument`.

    Raises:
        ValueError: If there is no such device.
    """
    import torch
    from mmengine.device import get_device

    if args.device is None:
        return get_device()
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'--device {args.device}: {reason}; leave it out for {get_device()}'
        ) from error
    return args.device
