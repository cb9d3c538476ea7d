"""Changes to a config that only training needs."""

import os

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint


def resume(cfg: Config, checkpoint: str) -> None:
    """Make a config resume a run.

    Args:
        cfg (Config): The config, changed in place.
        checkpoint (str): A file, or ``'auto'``: the last checkpoint in the work folder. If there
            is none, a new run starts from the config's own ``load_from``.
    """
    found: str | None = os.path.expanduser(checkpoint)
    if checkpoint == 'auto':
        found = find_latest_checkpoint(cfg.work_dir)
        if found and not os.path.isfile(found):  # the work folder has been moved
            found = os.path.join(cfg.work_dir, os.path.basename(found))
    if found is None:
        print_log(f'--resume: no checkpoint in {cfg.work_dir}, so a new run starts')
    else:
        cfg.load_from = found
    cfg.resume = found is not None


def scale_lr(cfg: Config) -> None:
    """Make a config scale its learning rate with the total batch size.

    Args:
        cfg (Config): The config, changed in place.

    Raises:
        ValueError: If the config doesn't say which batch size its learning rate is for.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ValueError(f'--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True
