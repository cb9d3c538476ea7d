"""Train and test the rows of a paper's table, and print the results beside the paper's.

The same command resumes an interrupted run and does not repeat completed steps.

Examples:
  focal-mm reproduce "FocalNet, Table 5" focalnet_t_1x --dry-run
  focal-mm reproduce "focalnet 5" --data 1pct
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import PARTS


def add_arguments(parser: ArgumentParser) -> None:
    """Add the rows, how they run, and where."""
    parser.add_argument('table', help="as 'FocalNet, Table 5', or shorter: focalnet 5")
    parser.add_argument(
        'row', nargs='?', help='name of its config, as focalnet_t_1x; default: all rows'
    )
    parser.add_argument('--dry-run', action='store_true', help='print the commands only')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument(
        '--gpus',
        type=int,
        help='number of processes, with one GPU each; default: all GPUs, or one process',
    )
    parser.add_argument(
        '--work-dirs',
        type=Path,
        default=Path('work_dirs'),
        help='folder of the runs; default: %(default)s',
    )
    parser.add_argument('--mini', action='store_true', help='train and test on the mini datasets')
    parser.add_argument(
        '--data',
        choices=PARTS,
        help='train on 1 %% or 10 %% of the images, a part that `focal-mm data` makes, with the '
        'runs in a folder of WORK_DIRS; the printed table says so',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings for training and testing',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Run the steps that are not done, and print the table."""
    import shlex
    from itertools import chain

    import torch
    from mmengine.config import Config

    from .. import reproduce, tables

    gpus = args.gpus or max(1, torch.cuda.device_count())
    options = ['--mini'] if args.mini else []
    if args.data:
        options += ['--data', args.data]
        args.work_dirs /= args.data  # apart from the results of all images
    if args.cfg_options:
        options += ['--cfg-options', *args.cfg_options]
    rows = [
        row
        for row in tables.select_rows(args.table)
        if args.row in (None, row.config, row.path.stem)
    ]
    if not rows:
        known = ', '.join(row.path.stem for row in tables.select_rows(args.table))
        raise ValueError(f'{args.row}: no such row; {args.table} has {known}')
    plans = {
        row: reproduce.plan(row, args.work_dirs / row.config, args.launcher, gpus, options)
        for row in rows
    }
    if args.dry_run:
        for step in chain.from_iterable(plans.values()):
            print(shlex.join(step.command), *['# done'] * step.done)
        return
    memory = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
    for row in rows:  # all of them first, because training takes days
        cfg = reproduce.load_row_config(row, args.work_dirs / row.config, options)
        reproduce.require_resources(row, cfg, memory)
    for steps in plans.values():
        reproduce.run_steps(steps)
    printed = [reproduce.mark_part(row, args.data) if args.data else row for row in rows]
    costs = {row: tables.count_cost(Config.fromfile(row.path)) for row in printed}
    metrics = {row: tables.measured_metrics(row, args.work_dirs) for row in printed}
    print(tables.render(costs, metrics), end='')
