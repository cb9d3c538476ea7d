"""Print the papers' tables beside the parameters, FLOPs and results measured here."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from mmengine.config import Config

from focal_mm.cli import tables
from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        'table',
        nargs='?',
        default='',
        help="as 'FocalNet, Table 5', or shorter: focalnet 5, mixformer; default: all",
    )
    parser.add_argument('--html', action='store_true', help='HTML instead of Markdown')
    parser.add_argument(
        '--work-dirs',
        type=Path,
        default=Path('work_dirs'),
        help='folder of the runs; default: %(default)s',
    )
    args = parser.parse_args()
    with one_line_errors():
        costs = {}
        for row in tables.select_rows(args.table):
            with redirect_stdout(sys.stderr):  # messages of the libraries
                try:
                    costs[row] = tables.count_cost(Config.fromfile(row.path))
                except ModuleNotFoundError as error:  # mmpose is optional
                    print(f'{row.config} is left out: {error}')
        metrics = {row: tables.measured_metrics(row, args.work_dirs) for row in costs}
        print(tables.render(costs, metrics, args.html), end='')


if __name__ == '__main__':
    main()
