"""Run a script after ``import focal_mm``: ``python -m focal_mm SCRIPT [ARGUMENTS]``.

Where mmcv has no compiled ops, this runs scripts that import mmdet's models before they read the
``custom_imports`` of a config, such as mmdet's own tools/test.py.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the script as ``python SCRIPT`` does, with its folder first in ``sys.path``."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        given = f'{sys.argv[1]}: no such script; ' if len(sys.argv) > 1 else ''
        sys.exit(f'{given}usage: python -m focal_mm SCRIPT [ARGUMENTS]')
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
