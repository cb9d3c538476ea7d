"""The hooks that watch losses: their mean over all processes, and the first that is not finite."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..registry import HOOKS
from ..weights import CheckpointError, read_checkpoint
from .checkpoints import write_whole
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
    :func:`load_incident` reads and ``focal-mm incident`` prints. With a gradient scaler, infinite
    gradients are a part of mixed precision; they count once the scale has fallen below 1, since
    gradients which smaller scales do not mend are NaN.

    A checkpoint that has such weights is not saved.
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
        for wrapper in optim_wrappers(runner).values():
            scaler = getattr(wrapper, 'loss_scaler', None)
            if scaler is not None and scaler.is_enabled() and scaler.get_scale() < 1:
                self._stop({}, [], f'the scale of gradients has fallen to {scaler.get_scale():g}')

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

    def _stop(self, losses: dict[str, Tensor], gradients: list[str], symptom: str = '') -> None:
        runner = self.runner
        assert runner is not None
        network = network_of(runner)
        weights = {name: value.cpu().clone() for name, value in network.state_dict().items()}
        modules, replayed = self._replay(runner, network)
        module = next((name for name, peak in modules if not math.isfinite(peak)), None)
        values = {name: value.item() for name, value in {**replayed, **losses}.items()}
        bad = [f'{n} is {v}' for n, v in values.items() if not torch.tensor(v).isfinite()]
        if not bad:
            bad = [f'the gradient of {name} is not finite' for name in gradients[-1:]]
        cause = bad[0] if bad else symptom or 'a gradient norm is not finite'
        path = Path(
            runner.work_dir,
            f'nonfinite_iter_{runner.iter + 1}'
            + (f'_rank_{get_rank()}' if get_world_size() > 1 else '')
            + '.pt',
        )
        content = dict(
            iter=runner.iter + 1,
            epoch=runner.epoch,
            cause=cause,
            module=module,
            modules=modules,
            losses=values,
            gradients=gradients,
            batch=_plain(self.batch),
            random=self.random,
            seed=runner.seed,
            state_dict=weights,
            cfg=runner.cfg.pretty_text,
        )
        try:
            file = io.BytesIO()
            torch.save(content, file)
            write_whole(file.getvalue(), path)
            where = f'batch, seeds and weights are in {path}: focal-mm incident shows them'
        except OSError as error:
            where = f'{path} could not be written ({error})'
        raise NonFiniteError(
            f'iteration {runner.iter + 1}: {cause}; '
            f'first not finite: {module or "no output, so it arises in a gradient"}; {where}; '
            'the last checkpoint is as it was. A lower learning rate or clip_grad may help'
        )

    def _replay(
        self, runner: Runner, network: Any
    ) -> tuple[list[tuple[str, float]], dict[str, Tensor]]:
        """Run the iteration's forward pass again; return the largest magnitude in the output of
        each module, in the order in which they end, and the losses.
        """
        found: list[tuple[str, float]] = []

        def watch(name: str, module: nn.Module) -> Any:
            def look(module: nn.Module, inputs: Any, output: Any) -> None:
                text = f'the output of {name or "the model"} ({type(module).__name__})'
                found.append((text, _peak(output)))

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
                found.append(('the batch itself', _peak(data)))
                model = runner.model if is_sharded(runner) else network
                losses = model._run_forward(data, mode='loss')
            losses = network.parse_losses(losses)[1]
        except Exception as error:  # whatever it is, the NaN is what the user has to hear of
            print_log(f'the iteration could not be repeated: {error!r}', 'current')
        finally:
            set_random_state(outer)
            for handle in handles:
                handle.remove()
        return found, losses

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights that are to be saved.

        Raises:
            NonFiniteError: If one is not finite.
        """
        known = {name for name, _ in named_parameters(runner)}
        for name, value in checkpoint['state_dict'].items():
            if name.removeprefix('module.') in known and not _are_finite([value]):
                raise NonFiniteError(
                    f'{name} is not finite at iteration {runner.iter + 1}, so it is not saved; the '
                    'last checkpoint is as it was. A lower learning rate or clip_grad may help'
                )


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


def _peak(value: Any) -> float:
    """Return the largest magnitude in nested tensors, which is NaN if one of them is."""
    peaks = [
        tensor.detach().abs().max().double().cpu()
        for tensor in _tensors(value)
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex())
    ]
    return float(torch.stack(peaks).max()) if peaks else 0.0


def _plain(value: Any) -> Any:
    """Return a batch in tensors, arrays, dicts and lists, which a file holds without classes."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if isinstance(value, BaseDataElement):
        return {key: _plain(child) for key, child in value.all_items()}
    for name in ('tensor', 'masks'):  # boxes and masks of mmdet
        if hasattr(value, name):
            return _plain(getattr(value, name))
    if value is None or isinstance(value, (str, bool, int, float, np.generic)):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    return repr(value)


def load_incident(path: str | Path) -> dict[str, Any]:
    """Read a file that :class:`NonFiniteHook` has written, without running code.

    Args:
        path (str or Path): The file.

    Returns:
        dict: ``iter``, ``epoch``, ``cause``, ``module`` (where the first value that is not finite
        came up, or None), ``modules`` (for each module in the order in which they end, its name and
        the largest magnitude of its output), ``losses``, ``gradients`` (names of the parameters
        whose gradients are not finite), ``batch`` (what the loader gave, objects as dicts of their
        fields), ``random`` and ``seed`` (states of the generators at the start of the iteration,
        and seed of the run), ``state_dict`` (weights of the network that the iteration began with)
        and ``cfg`` (the config, as text).

    Raises:
        CheckpointError: If it is no such file.
        FileNotFoundError: If there is no file.
    """
    content = read_checkpoint(path)  # its weights may be NaN, which mmengine's loader refuses here
    if not isinstance(content, dict) or 'modules' not in content:
        raise CheckpointError(
            f'{path}: not written at a loss that is not finite, as nonfinite_iter_N.pt is'
        )
    return content
