"""Measure time and memory: ``focal-mm bench``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('bench')
