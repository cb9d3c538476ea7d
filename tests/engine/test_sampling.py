"""Batches start anywhere, with the randomness that they have in a whole epoch."""

import pickle
import random
from itertools import islice
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler, ClassAwareSampler
from mmdet.registry import TRANSFORMS
from mmengine.dataset import DefaultSampler, InfiniteSampler, worker_init_fn
from mmpretrain.datasets.samplers import RepeatAugSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from focal_mm.engine import sampling
from focal_mm.engine.sampling import get_random_state, make_resumable

pytestmark = pytest.mark.stock


class Pictures(Dataset):
    """Stands for an annotated dataset; a sample is its index and three random numbers."""

    metainfo: ClassVar = dict(classes=('a', 'b'))

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> list[float]:
        return [index, random.random(), np.random.rand(), torch.rand(1).item()]

    def get_data_info(self, index: int) -> dict:
        return dict(width=2 + index % 3, height=3)

    def get_cat_ids(self, index: int) -> list[int]:
        return [index % 2]


class Groups(DefaultSampler):
    """Draws from NumPy's global generator, as GroupMultiSourceSampler of mmdet does."""

    def __iter__(self):
        return iter([int(np.random.randint(21)) for _ in range(21)])


def batches(sampler, batch_sampler, first, workers=0, epoch=1):
    """The batches of an epoch from one on; a sampler is new, as in a new process."""
    data = Pictures()
    sampler = sampler(data)
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
    loader = DataLoader(
        data, batch_sampler=batch_sampler(sampler, 4, False), num_workers=workers, collate_fn=list
    )
    resumable = make_resumable(loader, 3)
    resumable.start(epoch, first)
    return list(islice(loader, 12 - first))


@pytest.mark.parametrize('batch_sampler', [BatchSampler, AspectRatioBatchSampler])
@pytest.mark.parametrize(
    'sampler',
    [DefaultSampler, InfiniteSampler, ClassAwareSampler, RepeatAugSampler, Groups, RandomSampler],
)
def test_batches_are_those_of_the_whole_epoch(sampler, batch_sampler):
    if sampler is RandomSampler and batch_sampler is AspectRatioBatchSampler:
        pytest.skip('it asks the sampler for its dataset')

    def seeded(data):
        return sampler(data) if sampler is RandomSampler else sampler(data, seed=0)

    whole = batches(seeded, batch_sampler, 0)
    assert len(whole) == (12 if sampler is InfiniteSampler else 6)
    np.random.seed(9)  # the past of the process does not matter
    assert batches(seeded, batch_sampler, 4) == whole[4:]
    assert batches(seeded, batch_sampler, 0, epoch=2) != whole


def test_workers_do_not_matter():
    def seeded(data):
        return DefaultSampler(data, seed=0)

    assert batches(seeded, BatchSampler, 2, workers=2) == batches(seeded, BatchSampler, 2)


def test_batch_that_is_sent_to_a_worker_leaves_the_generators_of_training(monkeypatch):
    batch = sampling.SeededBatch([4, 2], [(0,), (1,)])
    with monkeypatch.context() as patch:
        patch.setattr(sampling, 'seed_generators', None)  # would fail
        received = pickle.loads(pickle.dumps(batch))
    before = torch.get_rng_state()
    assert list(received) == [4, 2] and received.keys == batch.keys
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_that_was_left_at_an_error_does_not_touch_the_generators_later():
    left = iter(sampling.SeededBatch([4, 2], [(0,), (1,)]))
    next(left)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    del left
    assert torch.equal(torch.get_rng_state(), before)


def test_training_draws_on_as_if_nothing_was_loaded():
    before = get_random_state()
    batches(DefaultSampler, BatchSampler, 1)
    after = get_random_state()
    assert before['python'] == after['python'] and torch.equal(before['torch'], after['torch'])


def test_hooks_still_find_what_a_loader_has():
    data = Pictures()
    sampler = DefaultSampler(data, seed=0)
    loader = DataLoader(data, batch_size=4, sampler=sampler, worker_init_fn=worker_init_fn)
    make_resumable(loader, 0)
    assert loader.batch_size == 4 and loader.sampler is sampler and len(loader) == 6
    assert loader.batch_sampler.sampler is sampler and loader.dataset is data
    assert list(loader) == []  # nothing before it is known where to start


def test_corrupt_pictures_are_named_and_skipped_up_to_a_limit(tmp_path, caplog, monkeypatch):
    from multiprocessing import Value

    from focal_mm.engine import skip_corrupt

    monkeypatch.setattr(skip_corrupt, '_skipped', Value('i', 0))
    path = tmp_path / 'x.jpg'
    path.write_bytes(b'no picture')
    load = TRANSFORMS.build(
        dict(type='focal_mm.SkipCorrupt', transform=dict(type='LoadImageFromFile'), limit=1)
    )
    assert load(dict(img_path=str(path))) is None
    with pytest.raises(RuntimeError, match='x.jpg cannot be read .*after 1 others were skipped'):
        load(dict(img_path=str(path)))
