"""Train for two epochs, then once more from the first: ``train.py FOLDER PLACE [PLACE ...]``.

A place is where the config's ``custom_imports`` names focal_mm: ``none``, ``first``, ``last``. Each
has a folder of its name.
"""

import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner


def train(folder: str, place: str) -> None:
    cfg = Config.fromfile(f'{sys.path[0]}/config.py', import_custom_modules=False)
    if place != 'none':
        cfg.custom_imports.imports.insert(0 if place == 'first' else 1, 'focal_mm')
    Path(folder).mkdir()
    cfg.dump(f'{folder}/config.py')
    for run in ('train', 'resume'):
        cfg = Config.fromfile(f'{folder}/config.py')
        cfg.work_dir, cfg.experiment_name = f'{folder}/{run}', f'{place}_{run}'
        if run == 'resume':
            cfg.resume, cfg.load_from = True, f'{folder}/train/epoch_1.pth'
        Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    for place in sys.argv[2:]:
        train(f'{sys.argv[1]}/{place}', place)
