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
            checkpoint='work_dirs/study/focalnet/pretraining/focal_modulation/seed0/iter_800.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=channels, finest_scale=20, roi_layer=dict(sampling_ratio=2)
        ),
        bbox_head=dict(in_channels=channels, fc_out_channels=128, num_classes=len(classes)),
        mask_roi_extractor=dict(
            out_channels=channels, finest_scale=20, roi_layer=dict(sampling_ratio=2)
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=len(classes),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100), rcnn=dict(sampler=dict(num=32))
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)),
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
train_cfg = dict(type='IterBasedTrainLoop', max_iters=140, val_interval=35)
val_cfg = dict(type='ValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=14),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=14),
]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=35, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
