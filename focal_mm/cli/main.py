"""The command ``focal-mm``; the scripts of tools/ are one of its commands each."""

import difflib
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from importlib import import_module

import focal_mm

from .arguments import ArgumentParser
from .errors import one_line_errors
from .output import without_noise

# For each module of focal_mm.cli.commands, its line in the list that --help prints.
COMMANDS = {
    'doctor': 'look for what does not work here, or in the data of a config',
    'new': 'write a config for your own data',
    'train': 'train a model',
    'test': 'test a checkpoint',
    'incident': 'show what a run saved when a loss was NaN',
    'migrate': 'turn a config of mmdet 2 or mmseg 0 into one of mmdet 3 or mmseg 1',
    'predict': 'draw and save the predictions for pictures and videos',
    'look': 'draw what a network sees: gates, attention, features',
    'export': 'write a model as an ONNX file and check it',
    'weights': 'list, download, check, find and convert the published weights',
    'report': 'make a page of a run: curves, classes, the worst pictures, config',
    'tables': "print the papers' tables beside what is measured here",
    'reproduce': "train and test the rows of a paper's table",
    'bench': 'measure time and memory beside other networks',
    'study': 'train small networks: do fitted weights of a classifier help a detector?',
    'data': 'make parts of COCO and ADE20K for quick comparisons',
    'demo': 'train, evaluate and draw a detector on drawn pictures',
    'run': 'run a script of others after import focal_mm',
    'completion': 'print the script that completes commands in a shell',
}
# The commands that run where torch or OpenMMLab may be missing.
WITHOUT_STACK = {'doctor'}
# The exit statuses that shells give to a process that Ctrl-C or a closed pipe has ended.
INTERRUPTED, PIPE_CLOSED = 130, 141


def main(*words: str) -> None:
    """Run a command.

    Args:
        *words (str): What the command line begins with, for a script that is one command. Default:
            nothing.
    """
    try:
        try:
            _run((*words, *sys.argv[1:]))
        finally:
            sys.stdout.flush()  # here, where a closed pipe is an error that can be caught
    except KeyboardInterrupt:
        print('\nfocal-mm: interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)


def _run(words: tuple[str, ...]) -> None:
    name = next(iter(words), '')
    parser = build_parser({name})
    if name and name not in COMMANDS and not name.startswith('-'):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        parser.error(f'{name}: no such command' + ''.join(f'; did you mean {n}?' for n in near))
    args = parser.parse_args(words)
    with one_line_errors(f'{parser.prog} {name}'):
        if name in WITHOUT_STACK:
            args.run(args)
            return
        focal_mm.set_up()
        with without_noise():
            args.run(args)


def build_parser(names: Iterable[str]) -> ArgumentParser:
    """Build the parser of ``focal-mm``.

    Args:
        names (iterable of str): The commands that get their arguments; the others are only listed.
    """
    parser = ArgumentParser(
        prog='focal-mm',
        description='FocalNet, Focal Transformer and MixFormer for mmdet, mmseg and mmpretrain.',
        epilog='focal-mm COMMAND --help has examples.',
    )
    parser.add_argument('--version', action='version', version=focal_mm.__version__)
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for name, summary in COMMANDS.items():
        module = import_module(f'{__package__}.commands.{name}') if name in names else None
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__ if module else None,
            formatter_class=RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(command)
    return parser
