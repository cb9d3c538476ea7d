"""Convert a checkpoint to a plain file of tensors: ``focal-mm weights convert``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('weights', 'convert')
