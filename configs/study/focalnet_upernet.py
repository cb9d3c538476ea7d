# The segmentor of the study of transfer, docs/study.md: 96x96 pixels, twice the side of the
# classifier's, and kernels larger by 6, as in FocalNet's section 4.3, with narrow heads.
_base_ = ['mmseg::_base_/models/upernet_r50.py', '../_base_/default_runtime_seg.py']

data_root = 'data/drawn_objects/scenes'
classes = ('plain', 'striped', 'checked', 'dotted', 'ground')
channels = 48
# Four fifths of the pixels are ground. With equal weights it is all that is learned in this time.
loss = dict(class_weight=[1.0, 1.0, 1.0, 1.0, 0.1])
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), focal_levels=3),
        focal_windows=9,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/study/focalnet/pretraining/focal_modulation/seed0/iter_800.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        in_channels=[24, 48, 96, 192],
        # The last map is 3x3.
        pool_scales=(1, 2, 3),
        channels=channels,
        num_classes=len(classes),
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        in_channels=96, channels=channels, num_classes=len(classes), loss_decode=loss
    ),
)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='PackSegInputs')
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='train', seg_map_path='train_maps'),
        metainfo=dict(classes=classes),
        pipeline=[*load, flip, pack],
    ),
    sampler=dict(type='InfiniteSampler'),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val', seg_map_path='val_maps'),
        metainfo=dict(classes=classes),
        pipeline=[*load, pack],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=5.0),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=25)
val_cfg = dict(type='ValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=10),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=10),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=15, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=25, max_keep_ckpts=2),
)
