"""``python -m focal_mm`` is the command ``focal-mm``."""

from .cli.main import main

if __name__ == '__main__':
    main()
