"""Run a script of others after import focal_mm.

Where mmcv has no compiled ops, this runs scripts that import mmdet's models before they read the
custom_imports of a config, such as mmdet's own tools/test.py.

Examples:
  focal-mm run tools/test.py CONFIG CHECKPOINT
  python -m torch.distributed.run --nproc_per_node=8 -m focal_mm run tools/test.py CONFIG CHECKPOINT
"""

import argparse
import runpy
import sys
from pathlib import Path


def run(args: argparse.Namespace) -> None:
    """Run the script as ``python SCRIPT`` does."""
    script = Path(args.script)
    if not script.is_file():
        raise FileNotFoundError(f'{script}: no such script')
    sys.argv = [args.script, *args.arguments]
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(args.script, run_name='__main__')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the script and its arguments."""
    parser.add_argument('script', help='a Python file')
    parser.add_argument(
        'arguments', nargs=argparse.REMAINDER, help='what comes after it is its own'
    )
    parser.set_defaults(run=run)
