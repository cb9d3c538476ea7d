"""The hook that ends a run on a signal, with a checkpoint of the iteration it is in."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import barrier, is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import distributed

from ..registry import HOOKS
from .checkpoint_hook import DurableCheckpointHook

# In the store that the processes of a run share.
_KEY = 'focal_mm/stop'
# Seconds in which signals are one: torchrun and Slurm may both send it to a process.
_SAME_SIGNAL = 0.5


@HOOKS.register_module()
class StopHook(Hook):
    """Hook that ends training on a signal: all processes save together, then exit.

    They do so at the end of the iteration, in validation at the end of the batch. The exit status
    is 128 plus the number of the signal, as a shell reports it: 143 for SIGTERM, 130 for SIGINT. A
    second signal ends a process at once.

    Args:
        signals (Sequence[str]): Names of the signals. Default: ``('SIGINT', 'SIGTERM')``.
    """

    priority = 'LOWEST'

    def __init__(self, signals: Sequence[str] = ('SIGINT', 'SIGTERM')) -> None:
        self.signals = [getattr(signal.Signals, name) for name in signals]
        self.received = 0
        self.training = False
        self.group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context that takes the signals; does nothing in a thread, which gets none."""
        self.received, since, main = 0, 0.0, os.getpid()

        def receive(number: int, frame: FrameType | None) -> None:
            nonlocal since
            in_worker = os.getpid() != main  # workers of a loader have the handler, too
            if not self.received:
                self.received, since = number, time.monotonic()
                if not in_worker:  # not by the logger, whose locks may be held
                    name = signal.Signals(number).name
                    note = (
                        f'\n{name}: saves and stops after this iteration; again to stop at once\n'
                    )
                    os.write(2, note.encode())
            elif in_worker or time.monotonic() - since > _SAME_SIGNAL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        try:
            old = {number: signal.signal(number, receive) for number in self.signals}
        except ValueError:  # not the main thread
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def before_train(self, runner: Runner) -> None:
        """Make a group of processes that tell each other about signals without the GPU."""
        self.training = True
        if is_distributed() and distributed.get_backend() != 'gloo':
            self.group = distributed.new_group(backend='gloo')

    def after_train(self, runner: Runner) -> None:
        """Note that there is nothing to save any more."""
        self.training = False

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and exit if any process has received a signal."""
        received = torch.tensor(self.received)
        if is_distributed():
            distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self.group)
        if received:
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1), int(received))

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Leave validation, save and exit if any process has received a signal.

        The processes may have different numbers of batches, so they don't wait for each other.
        """
        received = self.received
        if is_distributed():
            store = distributed.distributed_c10d._get_default_store()
            if received:
                store.set(_KEY, str(received))
            elif store.check([_KEY]):
                received = int(store.get(_KEY))
        if received and self.training:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the weights that are trained, not the average
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter), received)

    def _stop(self, runner: Runner, meta: dict, number: int) -> None:
        name = signal.Signals(number).name
        saved = None
        for hook in runner.hooks:
            if isinstance(hook, DurableCheckpointHook):
                saved = hook.save_interrupted(runner, meta)
        runner.visualizer.close()
        print_log(f'{name}: stopped at iteration {meta["iter"]}, saved in {saved}', 'current')
        barrier()
        raise SystemExit(128 + number)
