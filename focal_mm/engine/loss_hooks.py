"""The hooks that watch losses: their mean over all processes, and the first that is not finite."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from ..registry import HOOKS
from .process_state import is_sharded, named_parameters, network_of, optim_wrappers
from .sampling import get_random_state, set_random_state


class NonFiniteError(FloatingPointError):
    """Error: a loss, a gradient or a weight is NaN or infinite."""


@HOOKS.register_module()
class MeanLossHook(Hook):
    """Hook that replaces the values that a process logs by their means over all processes.

    The names are agreed on in the first iteration; a mean is over the processes that have a value,
    and a value whose name comes up later stays that of the process.
    """

    priority = 'HIGHEST'  # before RuntimeInfoHook, which hands the values to the logger

    def __init__(self) -> None:
        self.names: list[str] | None = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Replace the values."""
        if get_world_size() == 1 or not isinstance(outputs, dict):
            return
        scalars = {
            name: value.detach()
            for name, value in outputs.items()
            if isinstance(value, Tensor) and value.numel() == 1
        }
        if self.names is None:
            self.names = sorted(set().union(*all_gather_object(list(scalars))))
        device = next(network_of(runner).parameters()).device
        absent = torch.zeros((), device=device)
        sums = torch.stack(
            [
                *(scalars.get(name, absent).float().reshape(()).to(device) for name in self.names),
                *(absent + (name in scalars) for name in self.names),
            ]
        )
        all_reduce(sums)
        means = sums[: len(self.names)] / sums[len(self.names) :]
        outputs.update({n: mean for n, mean in zip(self.names, means) if n in scalars})


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Hook that ends a run at the first loss or gradient that is NaN or infinite.

    The weights are not updated with such a gradient, and the last checkpoint stays. All there is
    to find the cause is written to ``nonfinite_iter_N.pt`` in the work folder, which
    :func:`load_incident` reads. With a gradient scaler, infinite gradients are a part of mixed
    precision, so only losses count.

    A checkpoint that has such weights is neither saved nor loaded.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.batch: Any = None
        self.random: dict[str, Any] = {}
        self.handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Watch the optimizers."""
        self.runner = runner
        for wrapper in optim_wrappers(runner).values():
            if hasattr(wrapper.optimizer, 'register_step_pre_hook'):
                self.handles.append(wrapper.optimizer.register_step_pre_hook(self._before_step))

    def after_train(self, runner: Runner) -> None:
        """Stop watching."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.runner = self.batch = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what the iteration depends on."""
        self.batch = data_batch
        self.random = get_random_state()
        if torch.cuda.is_available():
            self.random['cuda'] = torch.cuda.get_rng_state()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Check the losses.

        Raises:
            NonFiniteError: If one is not finite.
        """
        if isinstance(outputs, dict):
            losses = {
                name: value.detach()
                for name, value in outputs.items()
                if 'loss' in name and isinstance(value, Tensor)
            }
            if losses and not _are_finite(losses.values()):
                self._stop(losses, [])

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if getattr(optimizer, 'found_inf', None) is not None:  # the scaler has seen it
            return
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group['params']
            if parameter.grad is not None
        ]
        finite = not gradients or _are_finite(torch._foreach_norm(gradients))
        assert self.runner is not None
        if is_sharded(self.runner):  # other processes have the other gradients
            shared = torch.tensor(float(finite), device=next(self.runner.model.parameters()).device)
            all_reduce(shared, 'min')
            finite = bool(shared)
        if not finite:
            named = named_parameters(self.runner)
            self._stop(
                {},
                [
                    name
                    for name, parameter in named
                    if parameter.grad is not None and not parameter.grad.isfinite().all()
                ],
            )

    def _stop(self, losses: dict[str, Tensor], gradients: list[str]) -> None:
        runner = self.runner
        assert runner is not None
        network = network_of(runner)
        weights = {name: value.cpu().clone() for name, value in network.state_dict().items()}
        module, replayed = self._replay(runner, network)
        values = {name: value.item() for name, value in {**replayed, **losses}.items()}
        bad = [f'{n} is {v}' for n, v in values.items() if not torch.tensor(v).isfinite()]
        if not bad:
            bad = [f'the gradient of {name} is not finite' for name in gradients[-1:]]
        path = Path(
            runner.work_dir,
            f'nonfinite_iter_{runner.iter + 1}'
            + (f'_rank_{get_rank()}' if get_world_size() > 1 else '')
            + '.pt',
        )
        content = dict(
            iter=runner.iter + 1,
            epoch=runner.epoch,
            module=module,
            losses=values,
            gradients=gradients,
            batch=self.batch,
            random=self.random,
            seed=runner.seed,
            state_dict=weights,
            cfg=runner.cfg.pretty_text,
        )
        try:
            torch.save(content, path)
            where = (
                f'batch, seeds and weights are in {path}: focal_mm.engine.load_incident reads it'
            )
        except OSError as error:
            where = f'{path} could not be written ({error})'
        raise NonFiniteError(
            f'iteration {runner.iter + 1}: {bad[0] if bad else "a gradient norm is not finite"}; '
            f'first not finite: {module or "no output, so it arises in a gradient"}; {where}; '
            'the last checkpoint is as it was. A lower learning rate or clip_grad may help'
        )

    def _replay(self, runner: Runner, network: Any) -> tuple[str | None, dict[str, Tensor]]:
        """Run the iteration's forward pass again; return the first module whose output is not
        finite, and the losses.
        """
        found: list[str] = []

        def watch(name: str, module: nn.Module) -> Any:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                if not found and not _are_finite(_tensors(output)):
                    found.append(f'the output of {name or "the model"} ({type(module).__name__})')

            return module.register_forward_hook(look)

        handles = [watch(name, module) for name, module in network.named_modules()]
        losses: dict[str, Tensor] = {}
        outer = get_random_state()
        set_random_state(self.random)
        if 'cuda' in self.random:
            torch.cuda.set_rng_state(self.random['cuda'])
        try:
            with torch.no_grad(), runner.optim_wrapper.optim_context(network):
                data = network.data_preprocessor(self.batch, True)
                if not _are_finite(_tensors(data)):
                    found.append('the batch itself')
                model = runner.model if is_sharded(runner) else network
                losses = model._run_forward(data, mode='loss')
            losses = network.parse_losses(losses)[1]
        except Exception as error:  # whatever it is, the NaN is what the user has to hear of
            print_log(f'the iteration could not be repeated: {error!r}', 'current')
        finally:
            set_random_state(outer)
            for handle in handles:
                handle.remove()
        return found[0] if found else None, losses

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights that are to be saved.

        Raises:
            NonFiniteError: If one is not finite.
        """
        for name in _nonfinite_weights(runner, checkpoint):
            raise NonFiniteError(
                f'{name} is not finite at iteration {runner.iter + 1}, so it is not saved; the '
                'last checkpoint is as it was. A lower learning rate or clip_grad may help'
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights that were read, before they are loaded.

        Raises:
            NonFiniteError: If one is not finite.
        """
        names = list(_nonfinite_weights(runner, checkpoint))
        if names:
            raise NonFiniteError(
                f'{runner._load_from}: {names[0]} and {len(names) - 1} more of the weights are NaN '
                'or infinite, so the training has failed; take an earlier checkpoint'
            )


def _nonfinite_weights(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """Yield the names of the parameters of a checkpoint that are not finite."""
    state = checkpoint.get('state_dict', checkpoint)
    known = {name for name, _ in named_parameters(runner)}
    for name, value in state.items():
        if (
            name.removeprefix('module.') in known
            and isinstance(value, Tensor)
            and value.is_floating_point()
            and not value.isfinite().all()
        ):
            yield name


def _are_finite(values: Iterable[Tensor]) -> bool:
    tests = [v.isfinite().all() for v in values if v.is_floating_point() or v.is_complex()]
    return not tests or bool(torch.stack([test.cpu() for test in tests]).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _tensors(child)


def load_incident(path: str | Path) -> dict[str, Any]:
    """Read a file that :class:`NonFiniteHook` has written.

    Args:
        path (str or Path): The file. It holds objects of OpenMMLab and may run code, so only read
            those of your own runs.

    Returns:
        dict: ``iter``, ``epoch``, ``module`` (where the first value that is not finite came up, or
        None), ``losses``, ``gradients`` (names of the parameters whose gradients are not finite),
        ``batch`` (as the loader gave it), ``random`` and ``seed`` (states of the generators at the
        start of the iteration, and seed of the run), ``state_dict`` (weights of the network that
        the iteration began with) and ``cfg`` (the config, as text).
    """
    return torch.load(path, map_location='cpu', weights_only=False)
