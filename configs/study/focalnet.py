# The classifier of the study of transfer, docs/study.md: a FocalNet of 0.8 M parameters with the
# kernels 3, 5, 7 of ImageNet, trained on 48x48 pixels of `focal_mm.datasets.drawn_objects`.
_base_ = '../_base_/default_runtime_cls.py'

data_root = 'data/drawn_objects'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='FocalNet',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), focal_levels=3),
        out_indices=(3,),
        out_norm=False,
        # The usual 0.02 is for networks four to eight times as wide.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.05),
    ),
    head=dict(type='focal_mm.TokenClsHead', num_classes=20, in_channels=192),
)
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=20
)
load = dict(type='LoadImageFromFile')
pack = dict(type='PackInputs')
flip = dict(type='RandomFlip', prob=0.5)
train_dataloader = dict(
    batch_size=24,
    num_workers=0,
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='pictures/train',
        pipeline=[load, flip, pack],
    ),
    sampler=dict(type='InfiniteSampler'),  # mmengine waits 2 s between two passes of another,
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='pictures/val',
        pipeline=[load, pack],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
train_cfg = dict(by_epoch=False, max_iters=800, val_interval=100)
val_cfg = dict(type='ValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=40),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=40),
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
