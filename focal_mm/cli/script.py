"""Scripts of others after ``import focal_mm``: ``focal-mm run SCRIPT [ARGUMENTS]``.

Where mmcv has no compiled ops, this runs scripts that import mmdet's models before they read the
``custom_imports`` of a config, such as mmdet's own tools/test.py.
"""

import argparse
import runpy
import sys
from pathlib import Path


def run(args: argparse.Namespace) -> None:
    """Run a script of others, such as mmdet's own tools/test.py, after ``import focal_mm``."""
    script = Path(args.script)
    if not script.is_file():
        raise FileNotFoundError(f'{script}: no such script')
    sys.argv = [args.script, *args.arguments]
    # As `python SCRIPT` does.
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(args.script, run_name='__main__')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the script and its arguments."""
    parser.add_argument('script', help='a Python file')
    parser.add_argument(
        'arguments', nargs=argparse.REMAINDER, help='what comes after it is its own'
    )
    parser.set_defaults(run=run)
