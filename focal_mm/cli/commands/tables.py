"""Print the papers' tables beside the parameters, FLOPs and results measured here.

Examples:
  focal-mm tables focalnet 5
  focal-mm tables "MixFormer, Table 3" --html
  focal-mm tables mixformer --json
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the table, the form and the folder of the runs."""
    parser.add_argument(
        'table',
        nargs='*',
        help="as 'FocalNet, Table 5', or shorter: focalnet 5, mixformer; default: all",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--html', action='store_true', help='HTML instead of Markdown')
    form.add_argument('--json', action='store_true', help='JSON instead of Markdown')
    parser.add_argument(
        '--work-dirs',
        type=path,
        default=Path('work_dirs'),
        help='folder of the runs; default: %(default)s',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Count the models of the tables and print them."""
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from mmengine.config import Config

    from .. import tables
    from ..output import print_json, track

    costs = {}
    for row in track(tables.select_rows(' '.join(args.table)), 'counting'):
        with redirect_stdout(sys.stderr):  # messages of the libraries
            try:
                costs[row] = tables.count_cost(Config.fromfile(row.path))
            except ModuleNotFoundError as error:  # mmpose is optional
                print(f'{row.config} is left out: {error}')
    metrics = {row: tables.measured_metrics(row, args.work_dirs) for row in costs}
    if args.json:
        print_json(
            [
                asdict(row) | dict(measured=asdict(costs[row]), results_here=metrics[row])
                for row in costs
            ]
        )
    else:
        print(tables.render(costs, metrics, args.html), end='')
