"""Print the papers' tables beside the parameters, FLOPs and results measured here.

Examples:
  focal-mm tables focalnet 5
  focal-mm tables "MixFormer, Table 3" --html
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the table, the form and the folder of the runs."""
    parser.add_argument(
        'table',
        nargs='*',
        help="as 'FocalNet, Table 5', or shorter: focalnet 5, mixformer; default: all",
    )
    parser.add_argument('--html', action='store_true', help='HTML instead of Markdown')
    parser.add_argument(
        '--work-dirs',
        type=Path,
        default=Path('work_dirs'),
        help='folder of the runs; default: %(default)s',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Count the models of the tables and print them."""
    import sys
    from contextlib import redirect_stdout

    from mmengine.config import Config

    from .. import tables

    costs = {}
    for row in tables.select_rows(' '.join(args.table)):
        with redirect_stdout(sys.stderr):  # messages of the libraries
            try:
                costs[row] = tables.count_cost(Config.fromfile(row.path))
            except ModuleNotFoundError as error:  # mmpose is optional
                print(f'{row.config} is left out: {error}')
    metrics = {row: tables.measured_metrics(row, args.work_dirs) for row in costs}
    print(tables.render(costs, metrics, args.html), end='')
