"""Train small networks on drawn pictures: do fitted weights of a classifier help a detector?

For each family, a classifier is trained first. A Mask R-CNN and a UPerNet then start from it, with
its kernels or biases fitted in several ways, and from random weights. DIR/FAMILY.json, .md and .png
have the results. Finished runs are not repeated, and an interrupted one goes on.

Examples:
  focal-mm study
  focal-mm study focalnet --seeds 3 4 5
  focal-mm study mixformer --seeds 0 --out ~/study
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..arguments import path

FAMILIES = ('focalnet', 'focal', 'mixformer')


def add_arguments(parser: ArgumentParser) -> None:
    """Add the families, the seeds and the folder."""
    parser.add_argument(
        'families',
        nargs='*',
        metavar='FAMILY',
        help=f'of {", ".join(FAMILIES)}; default: all, 12 to 21 minutes each on two cores',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='default: 0 1 2'
    )
    parser.add_argument(
        '--out',
        type=path,
        default=Path('work_dirs/study'),
        metavar='DIR',
        help='folder of the runs and the results; default: %(default)s',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Train what is not trained yet, and print the results."""
    for name in args.families:
        if name not in FAMILIES:
            raise ValueError(f'{name}: no such family; choose from {", ".join(FAMILIES)}')
    if min(args.seeds) < 0:
        raise ValueError(f'--seeds {min(args.seeds)}: a seed is 0 or more')
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'--out {args.out} is a file; name a folder')

    from .. import study
    from ..output import print_table, track

    seeds = list(dict.fromkeys(args.seeds))
    for family in dict.fromkeys(args.families or FAMILIES):
        runs, results = study.plan(family, seeds, args.out), []
        for result in track(study.execute(runs), family, len(runs)):
            results.append(result)
            ends = ', '.join(f'{name} {values[-1]}' for name, values in result['metrics'].items())
            about = f'{result["task"]}, {result["variant"]}, seed {result["seed"]}'
            print(f'{family} {len(results)}/{len(runs)}: {about}: {ends}', flush=True)
        for header, *rows in study.tables(study.report(family, seeds, results, args.out)):
            print_table(header, rows)
        for suffix in ('json', 'md', 'png'):
            print(args.out / f'{family}.{suffix}')
