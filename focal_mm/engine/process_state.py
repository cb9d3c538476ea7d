"""The state of each process beside the weights: random generators, gradients, buffers."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from mmengine.dist import (
    all_gather_object,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from .sampling import get_random_state, set_random_state


def network_of(runner: Runner) -> nn.Module:
    """Return the network of a runner, without what wraps it in distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def named_parameters(runner: Runner) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a runner's network by the names that they have in a checkpoint.

    Of a sharded network, a parameter is the part that this process has.
    """
    return _clean(network_of(runner).named_parameters())


def weight_shapes(runner: Runner) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that the state dict of a runner's whole network has."""
    if is_sharded(runner):
        return runner.strategy.shapes
    return shapes_of(network_of(runner))


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all that the state dict of a network has."""
    return {
        name: tuple(getattr(value, 'shape', ())) for name, value in network.state_dict().items()
    }


def is_sharded(runner: Runner) -> bool:
    """Return whether each process has only a part of the weights."""
    return isinstance(runner.model, FullyShardedDataParallel)


Value = TypeVar('Value', bound=Tensor)


def _clean(named: Iterable[tuple[str, Value]]) -> Iterator[tuple[str, Value]]:
    for name, value in named:
        yield name.replace('_fsdp_wrapped_module.', ''), value


def optim_wrappers(runner: Runner) -> dict[str, OptimWrapper]:
    """Return the optimizer wrappers of a runner by name; a single one has the name ``''``."""
    wrapper = runner.optim_wrapper
    return {'': wrapper} if isinstance(wrapper, OptimWrapper) else dict(wrapper.items())


def gather_processes(runner: Runner) -> list[dict[str, Any]]:
    """Return the state of each process; all processes call this.

    Returns:
        list[dict]: For each process, the states of the random generators. Gradients that wait for
        the rest of an accumulation. Buffers that are not those of the first process, as the
        statistics of batch normalization are.
    """
    network = network_of(runner)
    state: dict[str, Any] = dict(random=get_random_state())
    if torch.cuda.is_available():
        state['random']['cuda'] = torch.cuda.get_rng_state()
    if not all(wrapper.should_update() for wrapper in optim_wrappers(runner).values()):
        state['gradients'] = {
            name: parameter.grad.cpu()
            for name, parameter in named_parameters(runner)
            if parameter.grad is not None
        }
    if get_world_size() > 1:
        own = {name: buffer.cpu() for name, buffer in _clean(network.named_buffers())}
        shared = [own if is_main_process() else None]
        broadcast_object_list(shared)
        first: dict[str, Tensor] = shared[0]  # type: ignore[assignment]
        state['buffers'] = {
            name: value for name, value in own.items() if not torch.equal(value, first[name])
        }
    return all_gather_object(state)


def restore_process(runner: Runner, processes: list[dict[str, Any]]) -> None:
    """Restore what :func:`gather_processes` returned.

    With another number of processes, that of the first alone, without its gradients.
    """
    same = len(processes) == get_world_size()
    state = processes[get_rank() if same else 0]
    network = network_of(runner)
    if same:
        set_random_state(state['random'])
        if torch.cuda.is_available() and 'cuda' in state['random']:
            torch.cuda.set_rng_state(state['random']['cuda'].cpu())
    if same and 'gradients' in state:
        parameters = dict(named_parameters(runner))
        for name, gradient in state['gradients'].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        if hasattr(runner.model, 'require_forward_param_sync'):
            # DistributedDataParallel shares buffers only after an iteration that shared gradients.
            runner.model.require_forward_param_sync = False
    buffers = dict(_clean(network.named_buffers()))
    with torch.no_grad():
        for name, value in state.get('buffers', {}).items():
            buffers[name].copy_(value)
