"""Changes to a config that only training needs."""

import os
from importlib.metadata import version
from importlib.util import find_spec

from mmengine.config import Config, ConfigDict
from mmengine.utils import digit_version

from ..config import type_name
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


def shard(cfg: Config, kind: str) -> None:
    """Make a config train with each process having only a part of the model.

    Args:
        cfg (Config): The config, changed in place.
        kind (str): ``'fsdp'`` (``focal_mm.ShardedStrategy``) or ``'deepspeed'`` (mmengine's
            ``DeepSpeedStrategy``, ZeRO stage 2).

    Raises:
        ModuleNotFoundError: If DeepSpeed is not installed, or one that mmengine does not know.
        ValueError: If the processes are none of a launcher, or a hook or setting of the config
            needs whole models.
    """
    if cfg.launcher == 'none':
        raise ValueError(
            f'--sharded {kind} needs a launcher: `torchrun --nproc_per_node=GPUS -m focal_mm ...`'
        )
    for hook in cfg.get('custom_hooks') or []:
        if type_name(hook) in ('EMAHook', 'SWAHook'):
            raise ValueError(
                f'--sharded {kind}: {type_name(hook)} averages whole models; leave it out: '
                '--cfg-options custom_hooks=[]'
            )
    wrapper = cfg.optim_wrapper
    if kind == 'fsdp':
        cfg.runner_type = 'focal_mm.DurableFlexibleRunner'
        cfg.strategy = dict(type='focal_mm.ShardedStrategy', sync_bn=cfg.get('sync_bn'))
        return
    if not find_spec('deepspeed') or digit_version(version('deepspeed')) >= digit_version('0.19'):
        # mmengine imports optimizers that 0.19 has dropped.
        raise ModuleNotFoundError(
            '--sharded deepspeed needs a package: pip install "deepspeed<0.19"'
        )
    strategy = dict(
        type='DeepSpeedStrategy',
        zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
        config=dict(zero_allow_untested_optimizer=True),
        gradient_accumulation_steps=wrapper.get('accumulative_counts', 1),
    )
    clip = wrapper.get('clip_grad') or {}
    if 'max_norm' in clip:
        strategy['gradient_clipping'] = clip['max_norm']
    if type_name(wrapper) == 'AmpOptimWrapper':
        if wrapper.get('dtype') != 'bfloat16':
            strategy['fp16'] = dict(enabled=True)
        else:
            strategy['bf16'] = dict(enabled=True)
        strategy['inputs_to_half'] = ['inputs']
    cfg.strategy = strategy
    cfg.runner_type = 'FlexibleRunner'
    kept = {key: wrapper[key] for key in ('optimizer', 'paramwise_cfg') if key in wrapper}
    if 'constructor' in wrapper:
        kept['constructor'] = wrapper.constructor
    cfg.optim_wrapper = ConfigDict(kept, type='DeepSpeedOptimWrapper')
