"""Train small networks on drawn pictures: do fitted weights of a classifier help a detector?

For each family, classifiers are trained first. A Mask R-CNN and a UPerNet then start from one of
them, with its kernels or biases fitted in several ways, and from random weights. DIR/FAMILY.json
and DIR/FAMILY.png have the results. Finished runs are not repeated, and an interrupted one goes on.

Examples:
  focal-mm study
  focal-mm study focalnet --seeds 3 4 5
  focal-mm study mixformer --seeds 0 --out ~/study
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

FAMILIES = ('focalnet', 'focal', 'mixformer')


def add_arguments(parser: ArgumentParser) -> None:
    """Add the families, the seeds and the folder."""
    parser.add_argument(
        'families',
        nargs='*',
        metavar='FAMILY',
        help=f'of {", ".join(FAMILIES)}; default: all, about 20 minutes each on two cores',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='default: 0 1 2'
    )
    parser.add_argument(
        '--out',
        type=Path,
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
    out, seeds = args.out.expanduser(), list(dict.fromkeys(args.seeds))
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out {out} is a file; name a folder')

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from .. import study

    console = Console()
    for family in dict.fromkeys(args.families or FAMILIES):
        # Off a terminal there is a line a run only.
        with Progress(console=console, disable=not console.is_terminal) as progress:
            results = []
            runs = study.plan(family, seeds, out)
            for result in progress.track(study.execute(runs), len(runs), description=family):
                results.append(result)
                values = ', '.join(f'{k} {v[-1]}' for k, v in result['metrics'].items())
                about = f'{result["task"]}, {result["variant"]}, seed {result["seed"]}: {values}'
                count = f'{family} {len(results)}/{len(runs)}'
                progress.console.print(f'{count}: {about}', soft_wrap=True, highlight=False)
        content = study.report(family, seeds, results, out)
        for task, variants in content['summary'].items():
            table = Table(title=f'{family}, {task}', title_justify='left')
            metrics = list(next(iter(variants.values())))
            for name in (f'{len(seeds)} seeds, %', *metrics):
                table.add_column(name)
            for variant, figures in variants.items():
                cells = (f'{figures[m]["mean"]:.1f} ± {figures[m]["std"]:.1f}' for m in metrics)
                table.add_row(variant, *cells)
            console.print(table)
        console.print(f'{out / family}.json\n{out / family}.png', soft_wrap=True, highlight=False)
