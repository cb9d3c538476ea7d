"""The quick check of the data before a training."""

import os
import sys

from mmengine.config import Config

from ..datasets import check_config
from ..messages import printable

_SHOWN = 5  # warnings
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def require_sound_data(cfg: Config) -> None:
    """Raise an error if the training or validation data has errors; print warnings.

    Of several processes the first looks; if it ends, its launcher ends the others.

    Args:
        cfg (Config): The config of the training.

    Raises:
        ValueError: Names the first error, and how to see all, mend them or train all the same.
    """
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), '0')
    if cfg.get('launcher', 'none') != 'none' and rank != '0':
        return
    report = check_config(cfg, loaders=('train_dataloader', 'val_dataloader'))
    warnings = [one for one in report.findings if one.level == 'warning']
    for finding in warnings[:_SHOWN]:
        print(printable(f'data: {finding}'), file=sys.stderr)
    if len(warnings) > _SHOWN:
        print(f'data: {len(warnings) - _SHOWN} more warnings', file=sys.stderr)
    if report.errors:
        first, *others = [one for one in report.findings if one.level == 'error']
        more = f' (and {len(others)} more kinds of errors)' if others else ''
        raise ValueError(
            f'{first.file}: {first.summary}{more}; `focal-mm doctor --data {cfg.filename}`, with '
            'the same --cfg-options, shows all, and with --fix OUT.json writes a clean copy; '
            '--skip-data-check trains all the same'
        )
