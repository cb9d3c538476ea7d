"""Train, evaluate and draw a detector: ``focal-mm demo``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('demo')
