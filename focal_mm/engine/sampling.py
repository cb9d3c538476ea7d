"""Data loading that starts at any batch, and whose randomness does not depend on what came before.

The random numbers that a sample is drawn with follow from the seed of the run, the epoch and the
position of the sample among all samples of the epoch, over all processes. So the number of workers
does not matter, and neither does the number of processes; and the batches before the first one
that is wanted are passed over as indices, without loading a picture.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

# Batches whose indices are kept, more than workers load ahead.
_REMEMBERED = 1000


def get_random_state() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and PyTorch on the CPU."""
    return dict(python=random.getstate(), numpy=np.random.get_state(), torch=torch.get_rng_state())


def set_random_state(state: dict[str, Any]) -> None:
    """Set the states that :func:`get_random_state` returns."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())


def seed_generators(*key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch on the CPU.

    Args:
        *key (int): Numbers that the seeds follow from, none of them negative.
    """
    python, numpy, torch_seed = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(torch_seed)  # torch.manual_seed would seed the GPUs too


class RandomStream:
    """Context in which the global generators continue from where the last such context ended.

    Outside, they are as if the context had not been.

    Args:
        *key (int): Numbers that the seeds of the first context follow from.
    """

    def __init__(self, *key: int) -> None:
        outer = get_random_state()
        seed_generators(*key)
        self.inner = get_random_state()
        set_random_state(outer)

    def __enter__(self) -> None:
        self.outer = get_random_state()
        set_random_state(self.inner)

    def __exit__(self, *_: object) -> None:
        self.inner = get_random_state()
        set_random_state(self.outer)


class SeededBatch(list):
    """Indices of a batch, which seeds the global generators before it hands out each of them.

    ``DataLoader`` iterates over such a list with ``dataset[index]``, in a worker or in the process
    that trains. There, the generators are set back after the last index.

    Args:
        indices (Iterable): The indices.
        keys (list[tuple[int, ...]]): Of each index, the numbers that its seeds follow from.
    """

    def __init__(self, indices: Iterable, keys: list[tuple[int, ...]]) -> None:
        super().__init__(indices)
        self.keys = keys

    def __iter__(self) -> Iterator:
        state = None if get_worker_info() else get_random_state()
        for index, key in zip(super().__iter__(), self.keys):
            seed_generators(*key)
            yield index
        # Not in a finally clause: after an error, that would run whenever this is collected, in
        # the middle of another run.
        if state:
            set_random_state(state)

    def __reduce__(self) -> tuple:
        # pickle iterates over a list, in a thread of the process that trains.
        return SeededBatch, (tuple(super().__iter__()), self.keys)


class ResumableBatchSampler(Sampler):
    """The batches of another batch sampler, from any of an epoch on, as :class:`SeededBatch`.

    Before :meth:`start` there are none, since an iterator may be made, and workers started, before
    it is known where to begin.

    Args:
        batch_sampler (Iterable): Any batch sampler; its other attributes are found here, too.
        seed (int): Seed of the run.

    Attributes:
        remaining (int): Number of batches that were still to be passed over when the last epoch
            had no more.
        handed_out (dict[int, list]): The indices of the last batches, by their number in the epoch.
    """

    def __init__(self, batch_sampler: Any, seed: int) -> None:
        self.batch_sampler = batch_sampler
        self.seed = seed
        self.first: int | None = None
        self.epoch = self.remaining = 0
        self.handed_out: dict[int, list] = {}

    def start(self, epoch: int, first: int) -> None:
        """Set where the next iteration begins; iterations after it begin at the first batch.

        Args:
            epoch (int): The epoch.
            first (int): Number of batches of the epoch that are passed over.
        """
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[SeededBatch]:
        if self.first is None:
            return
        first, self.first = self.first, 0
        rank, world_size = get_rank(), get_world_size()
        # Some samplers draw from the global generators.
        stream = RandomStream(self.seed, self.epoch)
        with stream:
            batches = iter(self.batch_sampler)
            sizes = [len(batch) for batch in itertools.islice(batches, first)]
        position, self.remaining = sum(sizes), first - len(sizes)
        self.handed_out.clear()
        for number in itertools.count(first):
            with stream:
                batch = next(batches, None)
            if batch is None:
                return
            places = range(position, position + len(batch))
            position += len(batch)
            self.handed_out[number] = list(batch)
            self.handed_out.pop(number - _REMEMBERED, None)
            yield SeededBatch(
                batch, [(self.seed, self.epoch, place * world_size + rank) for place in places]
            )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'batch_sampler':  # while a copy is made, it is not there yet
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def make_resumable(loader: DataLoader, seed: int) -> ResumableBatchSampler | None:
    """Change a loader in place so that it can start at any batch.

    Args:
        loader (DataLoader): The loader, before anything iterates over it.
        seed (int): Seed of the run.

    Returns:
        ResumableBatchSampler or None: What says where the loader starts. None for loaders that
        know no indices of batches: of streams, and of single samples.
    """
    # The default generator would move on whenever an iterator is made.
    loader.generator = torch.Generator()
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    batches = ResumableBatchSampler(loader.batch_sampler, seed)
    # A loader refuses another batch sampler, and a new loader would lose its batch_size and
    # sampler, which hooks read.
    object.__setattr__(loader, 'batch_sampler', batches)
    return batches
