"""Test a checkpoint: ``focal-mm test``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('test')
