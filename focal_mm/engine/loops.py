"""Training loops that start at any iteration, also in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from .checkpoint_hook import DurableCheckpointHook
from .loaders import LOADER_TIMEOUT, alarm, named_deaths
from .sampling import get_random_state, make_resumable, set_random_state


class _Resumable:
    """What both loops share.

    Attributes:
        loader_epoch (int): Number of times that the loader was gone through.
        taken (int): Number of batches that were taken from the loader since.
        validated (bool): Whether the validation that was due where the loop starts has been done.
        failed (bool): Whether the loader raised an error.
        saved (str or None): The checkpoint of that moment.
    """

    dataloader: DataLoader
    runner: Runner
    saved: str | None

    def __init__(self, runner: Runner, dataloader: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(
                dataloader,
                seed=runner.seed,
                diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
            )
        self.batches = make_resumable(dataloader, runner.seed)
        self.failed, self.saved = False, None
        self.loader_epoch = self.taken = 0
        self.validated = True
        super().__init__(runner, dataloader, *args, **kwargs)  # type: ignore[call-arg]

    def seek(self, epoch: int, taken: int, validated: bool) -> None:
        """Set where the loop starts.

        Args:
            epoch (int): Number of times that the loader was gone through.
            taken (int): Number of batches that were taken from the loader since.
            validated (bool): Whether the validation that is due there has been done.
        """
        self.loader_epoch, self.taken, self.validated = epoch, taken, validated

    def _load(self) -> Iterator[Any]:
        """Yield the batches of the current epoch from where it stands."""
        first = self.taken
        if self.batches is not None:
            self.batches.start(self.loader_epoch, first)
        numbered = enumerate(self.dataloader, 0 if self.batches is None else first)
        while True:
            random = get_random_state()
            try:
                # With workers, the loader has a timeout of its own.
                with named_deaths() if self.dataloader.num_workers else alarm(LOADER_TIMEOUT):
                    number, batch = next(numbered)
            except StopIteration:
                return
            except Exception:
                self.failed = True
                set_random_state(random)  # without workers, it is that of a sample now
                self._save_before_the_end()
                raise
            if number >= first:  # a stream has to be read from its start
                self.taken = number + 1
                yield batch

    def _save_before_the_end(self) -> None:
        """Save what was trained until the loader failed, unless other processes wait for this one
        in the next iteration.
        """
        if self.runner.iter and get_world_size() == 1:
            meta = dict(epoch=self.runner.epoch, iter=self.runner.iter)
            for hook in self.runner.hooks:
                if isinstance(hook, DurableCheckpointHook):
                    self.saved = hook.save_interrupted(self.runner, meta)

    def awaited(self) -> str:
        """Return which batch the loader should have given, and of which pictures."""
        text = f'it was to give batch {self.taken + 1} of epoch {self.loader_epoch + 1}'
        indices = self.batches.handed_out.get(self.taken, []) if self.batches else []
        names = ', '.join(map(self._name, indices[:4])) + (', ...' if indices[4:] else '')
        return f'{text}, of {names}' if names else text

    def _name(self, index: int) -> str:
        try:
            found = self.dataloader.dataset.get_data_info(index)  # type: ignore[attr-defined]
            return str(found['img_path'])
        except Exception:  # a dataset of another library
            return f'number {index} of the dataset'

    def _validate_if_due(self, done: int, total: int) -> None:
        self._decide_current_val_interval()  # type: ignore[attr-defined]
        if (
            self.runner.val_loop is not None
            and done >= max(self.val_begin, 1)  # type: ignore[attr-defined]
            and (done % self.val_interval == 0 or done == total)  # type: ignore[attr-defined]
        ):
            self.runner.val_loop.run()


class ResumableEpochLoop(_Resumable, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``, which starts at any iteration of an epoch."""

    def run(self) -> Any:
        """Train."""
        self.runner.call_hook('before_train')
        if not self.validated and self.taken == 0:
            self._validate_if_due(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for an epoch, or for what is left of it."""
        self.loader_epoch = self._epoch
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for batch in self._load():
            self.run_iter(self.taken - 1, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self.taken = 0

    def position(self, meta: dict) -> tuple[int, int]:
        """Return the epoch and the number of batches taken that belong to a checkpoint.

        Args:
            meta (dict): Has the ``epoch`` of the checkpoint.
        """
        return meta['epoch'], self.taken if meta['epoch'] == self._epoch else 0


class ResumableIterLoop(_Resumable, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop``, which passes over what was trained without loading it."""

    def run(self) -> Any:
        """Train."""
        self.runner.call_hook('before_train')
        # All of the training is one epoch to the hooks.
        self.runner.call_hook('before_train_epoch')
        if not self.validated:
            self._validate_if_due(self._iter, self._max_iters)
        batches = self._load_endlessly()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _load_endlessly(self) -> Iterator[Any]:
        while True:
            for owner in (self.dataloader, self.dataloader.batch_sampler):
                sampler: Any = getattr(owner, 'sampler', None)
                if hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(self.loader_epoch)
            yield from self._load()
            self.loader_epoch += 1
            # A checkpoint of mmengine counts all iterations as of the first epoch.
            self.taken = self.batches.remaining if self.batches else 0

    def position(self, meta: dict) -> tuple[int, int]:
        """Return the epoch and the number of batches taken that belong to a checkpoint."""
        return self.loader_epoch, self.taken
