"""List, download, check, find and convert the published weights: ``focal-mm weights``."""

from focal_mm.cli.main import main

if __name__ == '__main__':
    main('weights')
