"""Changes to a config that only training needs."""

import os

from mmengine.config import Config

from ..engine.skip_corrupt import name_corrupt


def resume(cfg: Config, checkpoint: str) -> None:
    """Make a config resume a run.

    Args:
        cfg (Config): The config, changed in place.
        checkpoint (str): A file, or ``'auto'``: the newest whole checkpoint in the work folder. If
            there is none, a new run starts, from the config's own ``load_from``.
    """
    cfg.resume = 'auto' if checkpoint == 'auto' else True
    if checkpoint != 'auto':
        cfg.load_from = os.path.expanduser(checkpoint)


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


def skip_corrupt(cfg: Config, limit: int) -> None:
    """Make a config skip training pictures that cannot be read.

    Args:
        cfg (Config): The config, changed in place.
        limit (int): Number of pictures that may be skipped.

    Raises:
        ValueError: If the limit is negative.
    """
    if limit < 0:
        raise ValueError(f'--skip-corrupt {limit}: the number of pictures is not negative')
    name_corrupt(cfg.train_dataloader, limit)
