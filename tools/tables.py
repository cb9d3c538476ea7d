"""Print the papers' tables with what is measured here: parameters, FLOPs, results of runs."""
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mmengine.config import Config

from focal_mm import tables
from focal_mm.engine import ArgumentParser, one_line_errors


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('table', nargs='?', default='', help="as 'FocalNet, Table 5', or shorter: "
                        'focalnet 5, mixformer; default: all')
    parser.add_argument('--html', action='store_true', help='HTML instead of Markdown')
    parser.add_argument('--work-dirs', type=Path, default=Path('work_dirs'),
                        help='where results are looked for; default: %(default)s')
    args = parser.parse_args()
    with one_line_errors():
        costs = {}
        for row in tables.find(args.table):
            with redirect_stdout(sys.stderr):  # of what the libraries say
                try:
                    costs[row] = tables.measure(Config.fromfile(row.path))
                except ModuleNotFoundError as error:  # mmpose
                    print(f'{row.config} is left out: {error}')
        metrics = {row: tables.ours(row, args.work_dirs) for row in costs}
        print(tables.render(costs, metrics, args.html), end='')


if __name__ == '__main__':
    main()
