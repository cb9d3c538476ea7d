"""FocalNet-T Mask R-CNN on real photographs of COCO: trained, resumed, evaluated, drawn."""

import os
from pathlib import Path

import pytest

BESIDE_REPO = Path(__file__).parents[3] / 'shared' / 'data'
DATA = Path(os.environ.get('FOCAL_MM_REAL_DATA', BESIDE_REPO)) / 'coco'
CONFIG = 'configs/mask_rcnn/focalnet_t_1x.py'
SMALL = [
    f'data_root={DATA}',
    'train_dataloader.dataset.indices=4',
    'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    *(
        f'train_dataloader.dataset.pipeline.3.transforms.{step}.scales=[(128,256)]'
        for step in ('0.0', '1.0', '1.2')
    ),
    'train_dataloader.dataset.pipeline.3.transforms.1.1.crop_size=(64,96)',
    'val_dataloader.dataset.pipeline.1.scale=(256,128)',
    'test_dataloader.dataset.pipeline.1.scale=(256,128)',
    'model.train_cfg.rcnn.sampler.num=32',
    'model.train_cfg.rpn_proposal.max_per_img=100',
    # The highest scores of a net that is hardly trained are near the usual threshold of 0.05.
    'model.test_cfg.rcnn.score_thr=0',
    'model.test_cfg.rcnn.max_per_img=20',
]


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason=f'no photographs in {DATA}')
def test_trains_resumes_evaluates_and_draws(run_tool, tiny, tmp_path):
    small = [*tiny, *SMALL]
    train = ('train.py', CONFIG, '--from-scratch', '--work-dir', tmp_path)
    log = run_tool(*train, '--cfg-options', *small, 'train_cfg.max_epochs=1')
    assert 'coco/bbox_mAP' in log and 'coco/segm_mAP' in log
    log = run_tool(*train, '--resume', '--cfg-options', *small, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in log and 'coco/segm_mAP' in log
    run_tool(
        'test.py',
        CONFIG,
        tmp_path / 'epoch_2.pth',
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'drawn',
        '--cfg-options',
        *small,
    )
    assert len(list((tmp_path / 'drawn').glob('*.jpg'))) == 2
