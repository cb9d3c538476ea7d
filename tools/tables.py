"""Print the papers' tables: ``focal-mm tables``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('tables')
