"""Images in WebDataset shards, each of which is read once an epoch, in a random order."""

import bisect
import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import mmcv
import numpy as np
from mmengine.dataset import Compose
from mmengine.fileio import get, get_text
from mmengine.registry import TRANSFORMS
from torch.utils.data import Dataset, Sampler

from ..config import type_name
from ..registry import DATA_SAMPLERS, DATASETS

# Shards that each process keeps in memory: a batch may begin in one and end in the next.
_KEPT = 2


@DATASETS.register_module()
class ShardedImages(Dataset):
    """Labeled images in tar files, as WebDataset writes them: ``KEY.jpg`` and ``KEY.cls``.

    A file is read whole when one of its images is asked for, so that the images are to be asked
    for in the order of :class:`ShardBatchSampler`.

    Args:
        index (str): Path or address of a JSON file of ``widsindex``: its ``shardlist`` has for
            each shard ``url``, relative to the index, and ``nsamples``.
        pipeline (Sequence): The transforms; ``LoadImageFromFile`` is left out.
        metainfo (dict, optional): As ``dict(classes=...)``. Default: none.
        backend_args (dict, optional): Arguments of mmengine's file backend. Default: by address.

    Raises:
        ValueError: If the index is none.
    """

    def __init__(
        self,
        index: str,
        pipeline: Sequence[dict] = (),
        metainfo: dict | None = None,
        backend_args: dict | None = None,
    ) -> None:
        self.metainfo = metainfo or {}
        self.backend_args = backend_args
        folder = index.rpartition('/')[0]
        try:
            shards = json.loads(get_text(index, backend_args=backend_args))['shardlist']
            names = [shard['url'] for shard in shards]
            sizes = [int(shard['nsamples']) for shard in shards]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f'{index}: not an index of shards ({error!r}); it holds '
                '{"shardlist": [{"url": "a.tar", "nsamples": 1000}, ...]}'
            ) from error
        self.urls = [
            name if '://' in name or name.startswith('/') or not folder else f'{folder}/{name}'
            for name in names
        ]
        self.ends = list(accumulate(sizes))
        self.sizes = sizes
        self.pipeline = Compose(
            [
                TRANSFORMS.build(step)
                for step in pipeline
                if not type_name(step).endswith('LoadImageFromFile')
            ]
        )
        self.shards: OrderedDict[int, list[dict]] = OrderedDict()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Any:
        number = bisect.bisect(self.ends, index)
        sample = self._load(number)[index - self.ends[number] + self.sizes[number]]
        image, label = _parts(sample)
        array = mmcv.imfrombytes(image, flag='color')
        if array is None:
            raise ValueError(f'{sample["__key__"]} in {self.urls[number]} is not a picture')
        return self.pipeline(
            dict(
                img=array,
                img_path=f'{self.urls[number]}/{sample["__key__"]}',
                img_shape=array.shape[:2],
                ori_shape=array.shape[:2],
                gt_label=np.array(label, dtype=np.int64),
                sample_idx=index,
            )
        )

    def _load(self, number: int) -> list[dict]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        if number not in self.shards:
            url = self.urls[number]
            stream = io.BytesIO(get(url, backend_args=self.backend_args))
            samples = list(group_by_keys(tar_file_expander([dict(url=url, stream=stream)])))
            if len(samples) != self.sizes[number]:
                raise ValueError(
                    f'{url} has {len(samples)} samples and the index says {self.sizes[number]}; '
                    'write the index again'
                )
            self.shards[number] = samples
            while len(self.shards) > _KEPT:
                self.shards.popitem(last=False)
        self.shards.move_to_end(number)
        return self.shards[number]


def _parts(sample: dict[str, Any]) -> tuple[bytes, int]:
    for suffix in ('jpg', 'jpeg', 'png', 'webp'):
        if suffix in sample and 'cls' in sample:
            return sample[suffix], int(sample['cls'])
    names = ', '.join(name for name in sample if not name.startswith('__'))
    raise ValueError(
        f'{sample["__key__"]} in {sample["__url__"]} has {names}; it takes a picture (jpg, png, '
        'webp) and the number of its class (cls)'
    )


@DATA_SAMPLERS.register_module()
class ShardBatchSampler(Sampler):
    """Batches for :class:`ShardedImages`: all images at most once, over all processes and workers.

    The shards come in another order in each epoch, and so do the images of each. A process has
    consecutive images of that order, and so has each of its workers, so that hardly a shard is
    read twice. What is left when the images are divided by the processes and the batch is left
    out, other images in each epoch. For training: to evaluate, take ``DefaultSampler``.

    Args:
        sampler (Sampler): mmengine's ``DefaultSampler``, with the data, the seed and the epoch.
        batch_size (int): Number of images of a batch.
        drop_last (bool): As in any batch sampler; True is all there is. Default: True.
        streams (int): The ``num_workers`` of the loader, or 1 for none. Default: 1.
    """

    def __init__(
        self, sampler: Any, batch_size: int, drop_last: bool = True, streams: int = 1
    ) -> None:
        if not isinstance(sampler.dataset, ShardedImages):
            kind = type(sampler.dataset).__name__
            raise ValueError(
                f'focal_mm.ShardBatchSampler is for focal_mm.ShardedImages, not {kind}'
            )
        if not drop_last:
            raise ValueError(
                'drop_last=False: processes would have different numbers of batches; leave it out'
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.streams = max(streams, 1)

    def __len__(self) -> int:
        return len(self.sampler.dataset) // self.sampler.world_size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        sampler, data = self.sampler, self.sampler.dataset
        random = np.random.default_rng((sampler.seed or 0, sampler.epoch))
        order = range(len(data.sizes))
        if sampler.shuffle:
            order = random.permutation(len(data.sizes)).tolist()
        indices = np.concatenate(
            [
                data.ends[shard]
                - 1
                - (random.permutation if sampler.shuffle else np.arange)(data.sizes[shard])
                for shard in order
            ]
        )
        count = len(self)
        first = len(indices) // sampler.world_size * sampler.rank
        sizes = [len(range(stream, count, self.streams)) for stream in range(self.streams)]
        starts = [0, *accumulate(sizes)]
        for number in range(count):
            batch = starts[number % self.streams] + number // self.streams
            start = first + batch * self.batch_size
            yield indices[start : start + self.batch_size].tolist()
