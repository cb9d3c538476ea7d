"""Make a page of a run: curves, results of classes, the worst pictures, the config.

Examples:
  focal-mm report work_dirs/mask_rcnn/focalnet_t_1x
  focal-mm report work_dirs/a work_dirs/b --out beside.html
  focal-mm report work_dirs/a --watch
  focal-mm report work_dirs/a --evaluate
  focal-mm report work_dirs/a --evaluate epoch_7.pth --cfg-options data_root=~/data/coco/

The folders may be of any tool that uses mmengine's runner, also of runs that go on or have crashed.
Nothing in them is run, unless --evaluate builds the model of the config.
"""

import os
from argparse import ArgumentParser, Namespace

from ..arguments import add_settings_argument, path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the folders, the file, and what the page has beyond the logs."""
    parser.add_argument(
        'work_dir', nargs='+', type=path, help='folder of a run; several are put side by side'
    )
    parser.add_argument(
        '--out',
        type=path,
        metavar='FILE',
        help='the page; default: report.html in the first folder',
    )
    parser.add_argument(
        '--evaluate',
        nargs='?',
        const='auto',
        type=os.path.expanduser,
        metavar='CHECKPOINT',
        help='validate a checkpoint of each folder for results of classes, curves and the worst '
        'pictures; by default, or with auto, the best one or else the newest',
    )
    add_settings_argument(parser, 'with --evaluate: settings of the config, as data_root=DIR')
    parser.add_argument(
        '--base',
        type=os.path.expanduser,
        metavar='CONFIG',
        help="config to compare with; default: what the run's config inherits, if that was noted, "
        'or the installed config of the same name',
    )
    parser.add_argument(
        '--watch',
        nargs='?',
        const=20,
        type=int,
        metavar='SECONDS',
        help='make the page again until the runs end, every 20 seconds by default; an open page '
        'loads itself again',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Write the page."""
    from ...report import PAGE, write_report
    from .. import report

    page = args.out or args.work_dir[0] / PAGE
    if page.is_dir():
        raise IsADirectoryError(f'{page} is a folder; give the file, as {page / PAGE}')
    if args.watch is not None and args.watch < 1:
        raise ValueError(f'--watch {args.watch}: give whole seconds, 1 or more')
    if args.cfg_options and not args.evaluate:
        raise ValueError('--cfg-options changes only what --evaluate builds')
    for folder in args.work_dir if args.evaluate else ():
        report.evaluate(folder, args.evaluate, args.cfg_options)
    if args.watch is not None:
        report.watch(args.work_dir, page, args.base, args.watch)
        return
    for one in write_report(args.work_dir, page, args.base):
        print(report.describe(one))
    print(page)
