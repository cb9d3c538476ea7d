# The detector of the study of transfer, docs/study.md: 96x96 pixels, twice the side of the
# classifier's, and kernels larger by 6, as in FocalNet's section 4.2. Heads are narrow, and few
# regions are sampled, because on a CPU a head takes time in proportion to its regions.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../_base_/default_runtime.py']

data_root = 'data/drawn_objects/scenes'
classes = ('disc', 'square', 'triangle', 'star', 'cross')
channels = 48
model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), focal_levels=3),
        focal_windows=9,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/study/focalnet/classifier/focal_modulation/seed0/iter_400.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, finest_scale=20),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=len(classes)),
        mask_roi_extractor=dict(out_channels=channels, finest_scale=20),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=len(classes),
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=200), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(max_per_img=100), rcnn=dict(max_per_img=20)),
)
load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'),
)
size = dict(type='Resize', scale=(96, 96))  # the evaluation needs its scale factor
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        pipeline=[*load, size, flip, pack],
    ),
    sampler=dict(type='InfiniteSampler'),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=[*load, size, pack],
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/val.json', metric=['bbox', 'segm'])
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=200, val_interval=40)
val_cfg = dict(type='ValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20),
]
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(by_epoch=False, interval=40, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=False)
