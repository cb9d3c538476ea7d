"""Train a model: ``focal-mm train``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('train')
