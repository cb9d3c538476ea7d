"""tools/train.py and tools/test.py from end to end, on the mini datasets."""

import json
import pickle

import pytest
from PIL import Image

pytestmark = pytest.mark.stock

CONFIG = 'configs/mask_rcnn/focalnet_t_1x.py'


def last_metrics(folder):
    lines = max(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return json.loads(lines[-1])


@pytest.fixture(scope='module')
def trained(run_tool, tiny, tmp_path_factory):
    """One epoch of a tiny detector, then --resume for a second one."""
    folder = tmp_path_factory.mktemp('detector')
    train = ('train.py', CONFIG, '--mini', '--work-dir', folder)
    run_tool(*train, '--cfg-options', *tiny, 'train_cfg.max_epochs=1')
    log = run_tool(*train, '--resume', '--cfg-options', *tiny, 'train_cfg.max_epochs=2')
    return folder, log


def test_training_resumes_where_it_ended(trained):
    folder, log = trained
    assert 'resumed epoch: 1, iter: 2' in log
    assert 'Epoch(train) [2][2/2]' in log and 'Epoch(train) [1]' not in log
    assert [path.name for path in folder.glob('*.pth')] == ['epoch_2.pth']


def test_training_evaluates_boxes_and_masks(trained):
    metrics = last_metrics(trained[0])
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()


def test_testing_keeps_and_draws_predictions(trained, run_tool, tiny, tmp_path):
    run_tool(
        'test.py',
        CONFIG,
        trained[0] / 'epoch_2.pth',
        '--mini',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'found.pkl',
        '--show-dir',
        tmp_path / 'drawn',
        '--cfg-options',
        *tiny,
    )
    predictions = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    assert len(predictions) == 4 and 'masks' in predictions[0]['pred_instances']
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 4


def test_a_detector_is_tested_with_flips(trained, run_tool, tiny, tmp_path):
    log = run_tool(
        'test.py',
        CONFIG,
        trained[0] / 'epoch_2.pth',
        '--mini',
        '--tta',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *tiny,
    )
    assert '--tta: mmdet merges boxes only' in log
    assert 'coco/bbox_mAP' in log and 'coco/segm_mAP' not in log


def test_a_segmentor_trains_resumes_and_is_tested(run_tool, tmp_path):
    config = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    few = [
        'train_dataloader.dataset.indices=8',
        'val_dataloader.dataset.indices=4',
        'test_dataloader.dataset.indices=4',
        'default_hooks.checkpoint.interval=2',
    ]
    run_tool(
        'train.py',
        config,
        '--mini',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *few,
        'train_cfg.max_iters=2',
    )
    log = run_tool(
        'train.py',
        config,
        '--mini',
        '--work-dir',
        tmp_path,
        '--resume',
        '--cfg-options',
        *few,
        'train_cfg.max_iters=4',
    )
    assert 'resumed epoch: 0, iter: 2' in log and 'mIoU' in log
    log = run_tool(
        'test.py',
        config,
        tmp_path / 'iter_4.pth',
        '--mini',
        '--tta',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'labels',
        '--cfg-options',
        *few,
    )
    assert 'mIoU' in log
    labels = [Image.open(path) for path in (tmp_path / 'labels').glob('*.png')]
    assert [image.size for image in labels] == [(128, 128)] * 4


def test_two_processes_train_and_test_together(run_tool, tiny, tmp_path):
    few = [
        *tiny,
        'train_dataloader.batch_size=2',
        'train_cfg.max_epochs=1',
        'model.neck.norm_cfg.type=SyncBN',
        'find_unused_parameters=True',
    ]
    log = run_tool(
        'dist_train.sh', CONFIG, '2', '--mini', '--work-dir', tmp_path, '--cfg-options', *few
    )
    assert 'Distributed launcher: pytorch' in log and 'GPU number: 2' in log
    assert log.count('no GPU: BatchNorm instead of SyncBatchNorm') == 1
    log = run_tool(
        'dist_test.sh',
        CONFIG,
        tmp_path / 'epoch_1.pth',
        '2',
        '--mini',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *few,
    )
    assert 'coco/segm_mAP' in log
