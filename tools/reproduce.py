"""Train and test the rows of a paper's table: ``focal-mm reproduce``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('reproduce')
