"""Show what a run saved when a loss or a gradient was NaN or infinite.

Examples:
  focal-mm incident work_dirs/run/nonfinite_iter_120.pt
  focal-mm incident work_dirs/run/nonfinite_iter_120.pt --modules 40 --json

The file is read without running code. focal_mm.engine.load_incident returns all of it.
"""

from argparse import ArgumentParser, Namespace

from ..arguments import path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the file, and how much of it is printed."""
    parser.add_argument('file', type=path, help='nonfinite_iter_N.pt in the work folder of a run')
    parser.add_argument(
        '--modules',
        type=int,
        default=10,
        metavar='N',
        help='number of modules before the first one that is not finite; default: 10',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Print the incident."""
    from ...datasets.classes import shorten
    from ...engine import load_incident
    from ...messages import printable
    from ...weights import CheckpointError
    from .. import incident
    from ..output import print_json, print_table, quiet_libraries

    with quiet_libraries():
        content = load_incident(args.file)
        try:
            summary = incident.summarize(content, args.modules)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise CheckpointError(
                f'{args.file}: not as a run writes it ({type(error).__name__}: {error})'
            ) from error
    if args.json:
        print_json(summary)
        return
    for name in ('iter', 'epoch', 'seed', 'cause', 'module'):
        print(f'{name}: {printable(str(summary[name]))}')
    for name in ('losses', 'gradients', 'weights'):
        print(f'{name}: {printable(shorten(summary[name])) or "all finite"}')
    print()
    print_table(('module, in the order in which they end', 'largest output'), summary['modules'])
    print()
    print_table(('batch', 'shape', 'smallest', 'largest', 'not finite'), summary['batch'])
