"""The strategy of mmengine that shards a model over processes, by blocks of our backbones."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mmengine
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.model import MMFullyShardedDataParallel
from mmengine.optim import BaseOptimWrapper, build_optim_wrapper
from mmengine.runner.checkpoint import save_checkpoint
from torch import nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
)
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..backbones.base import Stage
from ..registry import STRATEGIES
from .fit import IMPLEMENTATION
from .process_state import shapes_of

_OPTIMIZER = ('state', 'param_groups')


class Sharded(MMFullyShardedDataParallel):
    """mmengine's wrapper, which accumulates the gradients of each process's own part."""

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context in which gradients are reduced as ever.

        Otherwise each process would keep the gradients of the whole model until the update.
        """
        yield


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's ``FSDPStrategy`` for :class:`DurableFlexibleRunner`, on GPUs and the CPU.

    Each block of a backbone of ours is a unit of its own, and all the rest is one. Checkpoints are
    those of the whole model, as without sharding, written by the first process. The groups of
    parameters are those of the whole model too, whose shapes and names say what decays, and
    gradients are clipped by their norm over all processes.

    Args:
        model_wrapper (dict, optional): Arguments of ``FullyShardedDataParallel``, which replace
            ours. Default: none.
        **kwargs: Arguments of ``FSDPStrategy``.
    """

    shapes: dict[str, tuple[int, ...]]
    backend_args: dict[str, Any] | None = None

    def __init__(self, *, model_wrapper: dict | None = None, **kwargs: Any) -> None:
        if kwargs.setdefault('state_dict_cfg', 'full') == 'full' and get_device() == 'cpu':
            # On the CPU, what PyTorch offloads there is the memory that it frees.
            kwargs['state_dict_cfg'] = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=FullStateDictConfig(),
                optim_state_dict_config=FullOptimStateDictConfig(rank0_only=True),
            )
        super().__init__(model_wrapper=model_wrapper, **kwargs)
        if not self._is_full_state_dict():
            raise ValueError(
                "focal_mm.ShardedStrategy writes whole checkpoints, so state_dict_cfg is 'full'"
            )

    def prepare(self, model: Any, *, optim_wrapper: Any = None, **kwargs: Any) -> Any:
        """Build the optimizer of the whole model, then shard the model."""
        model = self.convert_model(self.build_model(model))
        self.shapes = shapes_of(model)
        if isinstance(optim_wrapper, dict):
            if str(optim_wrapper.get('type', '')).startswith('Amp'):
                optim_wrapper.setdefault('use_fsdp', torch.cuda.is_available())
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        blocks = {
            block for stage in model.modules() if isinstance(stage, Stage) for block in stage.blocks
        }
        cpu = get_device() == 'cpu'
        ours: dict[str, Any] = dict(
            type=Sharded,
            auto_wrap_policy=partial(lambda_auto_wrap_policy, lambda_fn=blocks.__contains__),
            # Parameters stay the ones that the optimizer has.
            use_orig_params=True,
            **(dict(device_id=torch.device('cpu')) if cpu else {}),
        )
        self.model_wrapper: dict | None = {**ours, **(self.model_wrapper or {})}
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any, model: Any = None) -> BaseOptimWrapper:
        """Let an optimizer clip gradients by their norm over all processes."""
        if getattr(optim_wrapper, 'clip_grad_kwargs', None) and (
            optim_wrapper.clip_func is nn.utils.clip_grad_norm_
        ):

            def clip(parameters: Any, max_norm: float, norm_type: float = 2.0) -> Any:
                return model.clip_grad_norm_(max_norm, norm_type)

            optim_wrapper.clip_func = clip
        return optim_wrapper

    def optim_state_dict(self) -> dict:
        """Return the state of the optimizer of the whole model, in the first process."""
        state = self.optim_wrapper.state_dict()
        own = {key: state.pop(key) for key in _OPTIMIZER}
        whole = FullyShardedDataParallel.optim_state_dict(
            self.model, self.optim_wrapper.optimizer, own
        )
        return {**state, **whole}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load this process's part of the state of the optimizer of the whole model."""
        optimizer = self.optim_wrapper.optimizer
        own = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=optimizer,
            optim_state_dict={key: state_dict[key] for key in _OPTIMIZER},
        )
        for group, now in zip(own['param_groups'], optimizer.param_groups):
            group.update({key: now[key] for key in IMPLEMENTATION if key in now})
        self.optim_wrapper.load_state_dict({**state_dict, **own})

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict:
        """Load the weights of a checkpoint; its config, which is code, is left out."""
        checkpoint = super().load_checkpoint(filename, **kwargs)
        checkpoint.get('meta', {}).pop('config', None)
        return checkpoint

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict | None = None,
        callback: Callable[[dict], None] | None = None,
    ) -> None:
        """Save a checkpoint of the whole model; all processes call this."""
        content = dict(extra_ckpt or {}, state_dict=self.model_state_dict())
        if save_optimizer:
            content['optimizer'] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, 'param_schedulers'):
            content['param_schedulers'] = self.scheduler_state_dict()
        content.setdefault('meta', {}).update(
            seed=self.seed,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine=mmengine.__version__,
        )
        if callback is not None:
            callback(content)
        if is_main_process():
            save_checkpoint(content, filename, backend_args=self.backend_args)
