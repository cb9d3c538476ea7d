"""Pictures and shards on a server of object storage."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.fileio import get, get_file_backend, get_local_path, get_text
from PIL import Image
from torch.utils.data import DataLoader

from focal_mm.datasets.shards import ShardBatchSampler, ShardedImages
from focal_mm.engine.sampling import make_resumable
from focal_mm.registry import DATASETS

pytestmark = pytest.mark.stock

SIZES = (5, 9, 7, 8, 6)


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(out, 'PNG')
    return out.getvalue()


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """A bucket of a server of Amazon's protocol, with pictures, annotations and shards."""
    import fsspec
    from moto.server import ThreadedMotoServer
    from webdataset import TarWriter

    patch = pytest.MonkeyPatch()
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv('AWS_ENDPOINT_URL', f'http://{host}:{port}')
    patch.setenv('AWS_ACCESS_KEY_ID', 'key')
    patch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    files = fsspec.filesystem('s3')
    files.mkdir('bucket')
    files.pipe('bucket/coco/a.json', b'{"a": 1}')
    files.pipe('bucket/coco/train/dog/7.png', picture(7))
    files.pipe('bucket/coco/train/8.png', picture(8))
    count, shards = 0, []
    for number, size in enumerate(SIZES):
        out = io.BytesIO()
        with TarWriter(out) as tar:
            for _ in range(size):
                tar.write({'__key__': f'k{count:03}', 'png': picture(count), 'cls': str(count % 3)})
                count += 1
        files.pipe(f'bucket/shards/{number}.tar', out.getvalue())
        shards.append(dict(url=f'{number}.tar', nsamples=size))
    files.pipe('bucket/shards/index.json', json.dumps(dict(shardlist=shards)).encode())
    yield 's3://bucket'
    server.stop()
    patch.undo()


def test_pictures_and_annotations_are_read_from_object_storage(bucket):
    assert get(f'{bucket}/coco/train/8.png') == picture(8)
    assert get_text(f'{bucket}/coco/a.json') == '{"a": 1}'
    with get_local_path(f'{bucket}/coco/a.json') as path:
        assert json.loads(Path(path).read_text()) == dict(a=1)
    assert not os.path.exists(path)
    backend = get_file_backend(bucket)
    assert backend.join_path(f'{bucket}/coco/', 'train') == f'{bucket}/coco/train'
    assert backend.isdir(f'{bucket}/coco') and backend.isfile(f'{bucket}/coco/a.json')
    assert not backend.exists(f'{bucket}/coco/b.json')
    found = list(backend.list_dir_or_file(f'{bucket}/coco/train'))
    assert found == ['8.png', 'dog']
    files = backend.list_dir_or_file(
        f'{bucket}/coco', list_dir=False, suffix='.png', recursive=True
    )
    assert list(files) == ['train/8.png', 'train/dog/7.png']


def test_transforms_of_openmmlab_read_from_object_storage(bucket):
    from mmcv.transforms import LoadImageFromFile

    found = LoadImageFromFile()(dict(img_path=f'{bucket}/coco/train/dog/7.png'))
    assert found['img'].shape == (4, 6, 3) and (found['img'] == 7).all()


def make_loader(bucket, rank=0, world_size=1, workers=0, seed=3):
    data = ShardedImages(f'{bucket}/shards/index.json', [dict(type='LoadImageFromFile')])
    sampler = DefaultSampler(data, shuffle=True, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    batches = ShardBatchSampler(sampler, batch_size=3, streams=workers)
    return DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=pseudo_collate)


def seen(loader) -> list[int]:
    found = []
    for batch in loader:
        values = [int(image[0, 0, 0]) for image in batch['img']]
        assert [int(label) for label in batch['gt_label']] == [value % 3 for value in values]
        found += values
    return found


@pytest.mark.parametrize('workers', [0, 2])
def test_every_image_comes_once_over_all_processes_and_workers(bucket, workers):
    found = [value for rank in range(2) for value in seen(make_loader(bucket, rank, 2, workers))]
    assert len(found) == len(set(found)) == sum(SIZES) // 2 // 3 * 3 * 2


def test_epochs_differ_and_are_repeated(bucket):
    loader = make_loader(bucket)
    first = seen(loader)
    assert first == seen(loader)
    assert sorted(first) != first
    loader.batch_sampler.sampler.set_epoch(1)
    assert seen(loader) != first


def test_each_worker_reads_a_shard_once(bucket, monkeypatch):
    reads = []
    monkeypatch.setattr(
        'focal_mm.datasets.shards.get', lambda url, **_: reads.append(url) or get(url)
    )
    seen(make_loader(bucket))
    assert len(reads) == len(SIZES)


def test_epoch_goes_on_in_the_middle_without_reading_what_was(bucket, monkeypatch):
    whole = seen(make_loader(bucket))
    reads = []
    monkeypatch.setattr(
        'focal_mm.datasets.shards.get', lambda url, **_: reads.append(url) or get(url)
    )
    loader = make_loader(bucket)
    make_resumable(loader, seed=3).start(0, 8)
    assert seen(loader) == whole[8 * 3 :]
    assert len(reads) < len(SIZES)


def test_faults_of_shards_are_named(bucket, tmp_path):
    (tmp_path / 'index.json').write_text('{}')
    with pytest.raises(ValueError, match='index.json: not an index of shards'):
        ShardedImages(str(tmp_path / 'index.json'))
    index = dict(shardlist=[dict(url=f'{bucket}/shards/0.tar', nsamples=6)])
    (tmp_path / 'index.json').write_text(json.dumps(index))
    data = DATASETS.build(dict(type='focal_mm.ShardedImages', index=str(tmp_path / 'index.json')))
    with pytest.raises(ValueError, match='0.tar has 5 samples and the index says 6'):
        data[0]
    with pytest.raises(ValueError, match='is for focal_mm.ShardedImages, not TensorDataset'):
        ShardBatchSampler(DefaultSampler(torch.utils.data.TensorDataset(torch.ones(3))), 1)
    with pytest.raises(ValueError, match='drop_last=False'):
        ShardBatchSampler(DefaultSampler(data), 1, drop_last=False)
