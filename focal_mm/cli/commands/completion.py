"""Print the script that completes commands, options and the names of weights in a shell.

Examples:
  focal-mm completion bash > ~/.local/share/bash-completion/completions/focal-mm
  focal-mm completion zsh > ~/.zfunc/_focal-mm      # ~/.zfunc is in fpath, before compinit
  focal-mm completion fish > ~/.config/fish/completions/focal-mm.fish
"""

import os
from argparse import ArgumentParser, Namespace

from ..arguments import path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the shell."""
    parser.add_argument('shell', choices=['bash', 'fish', 'tcsh', 'zsh'])
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Print the script."""
    import shtab

    from ...weights import ZOO
    from ..main import COMMANDS, build_parser

    parser = build_parser(COMMANDS)
    for action in _actions(parser):
        if action.type in (path, os.path.expanduser):
            is_folder = action.dest.endswith(('dir', 'dirs', 'folder'))
            action.complete = shtab.DIRECTORY if is_folder else shtab.FILE
        if action.dest in ('weights', 'checkpoint'):
            action.choices = list(ZOO)
    print(shtab.complete(parser, args.shell))


def _actions(parser: ArgumentParser) -> list:
    """Return the arguments of a parser and of the parsers below it."""
    own = list(parser._actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):  # the parsers of commands, by their names
            for command in action.choices.values():
                own += _actions(command)
    return own
