"""Look for what does not work on this machine, or in the data of a config.

Examples:
  focal-mm doctor
  focal-mm doctor --json
  focal-mm doctor --data road.py
  focal-mm doctor --data focal_mm::mask_rcnn/focalnet_t_1x.py --all-pictures
  focal-mm doctor --data road.py --fix road_train.json

Exit status: 0 if all works, 1 if there are errors; warnings and notes do not count.
"""

import os
from argparse import ArgumentParser, Namespace
from typing import Any

from ..arguments import add_settings_argument, path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the config, and how much of its data is read."""
    parser.add_argument(
        '--data',
        type=os.path.expanduser,
        metavar='CONFIG',
        help="go through a config's datasets: annotation files, label maps, pictures",
    )
    parser.add_argument(
        '--all-pictures',
        '--thorough',
        dest='thorough',
        action='store_true',
        help='with --data: decode every picture and label map; by default 500 of each are opened',
    )
    parser.add_argument(
        '--fix',
        type=path,
        metavar='OUT.json',
        help='with --data: decode every picture, and write a copy of the annotation file without '
        'what training cannot use, and beside it OUT.left_out.json, the list of that; of label '
        'maps and class folders a list OUT.txt, which ann_file takes',
    )
    add_settings_argument(parser, 'with --data: settings of the config, as data_root=DIR')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Look, print, and exit with status 1 if there are errors."""
    import sys

    if args.fix and not args.data:
        raise ValueError('--fix cleans the data of a config; name it: --data CONFIG')
    errors = _examine_data(args) if args.data else _examine_machine(args)
    if errors:
        sys.exit(1)


def _examine_machine(args: Namespace) -> int:
    import sys

    from .. import doctor
    from ..output import print_json

    if sys.stderr.isatty():
        print('importing the libraries ...', file=sys.stderr)
    checks = doctor.examine()
    errors = sum(check.state == 'error' for check in checks)
    if args.json:
        print_json(doctor.to_json(checks))
        return errors
    rows = [(check.state, check.name, check.detail, check.mend) for check in checks]
    _print_rows(rows)
    warnings = sum(check.state == 'warning' for check in checks)
    print(f'{errors} errors, {warnings} warnings')
    return errors


def _examine_data(args: Namespace) -> int:
    import sys
    from contextlib import redirect_stdout
    from dataclasses import asdict

    import focal_mm

    from ..output import print_json

    with redirect_stdout(sys.stderr):  # messages of the libraries
        focal_mm.set_up()
        from ...datasets import check_config
        from ...datasets.check import printable
        from ..runner import load_config

        cfg = load_config(args.data, options=args.cfg_options)
        report = check_config(cfg, args.thorough, fix=args.fix)
    if args.json:
        found = dict(
            findings=[asdict(one) for one in report.findings],
            looked_at=report.looked_at,
            copies=[asdict(one) for one in report.copies],
        )
        print_json(found)
        return report.errors
    for line in report.looked_at:
        print(printable(line))
    _print_rows([(one.level, one.file, one.summary, '') for one in report.findings])
    for copy in report.copies:
        print(
            f'{copy.file}: {copy.source} without {copy.left_out} records, and with {copy.changed} '
            f'mended; {copy.left_out_file} lists them'
        )
        for fault in copy.remaining:
            print(f'{copy.file}: still has an error that no copy can mend: {fault}')
    print(f'{report.errors} errors, {report.warnings} warnings')
    return report.errors


def _print_rows(rows: list[tuple[Any, ...]]) -> None:
    """Print a table on a terminal, else a line for each row."""
    import sys

    if not sys.stdout.isatty():
        for state, name, detail, mend in rows:
            print(f'{state}: {name}: {detail}' + (f'; to mend it: {mend}' if mend else ''))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colors = dict(ok='green', note='blue', warning='yellow', error='red')
    table = Table(show_header=False)
    for state, name, detail, mend in rows:
        text = escape(detail) + (f'\n[bold]{escape(mend)}[/bold]' if mend else '')
        table.add_row(f'[{colors[state]}]{state}[/]', escape(name), text)
    if rows:
        Console().print(table)
