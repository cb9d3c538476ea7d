"""The command ``focal-mm``."""

from . import data, script, weights
from .arguments import ArgumentParser
from .errors import one_line_errors


def main() -> None:
    """Run the subcommand that the command line names."""
    parser = ArgumentParser(prog='focal-mm', description=__doc__)
    commands = parser.add_subparsers(required=True)
    weights.add_arguments(commands.add_parser('weights', help=weights.__doc__))
    script.add_arguments(commands.add_parser('run', help=script.run.__doc__))
    data.add_arguments(commands.add_parser('data', help=data.__doc__.replace('%', '%%')))
    args = parser.parse_args()
    with one_line_errors():
        args.run(args)
