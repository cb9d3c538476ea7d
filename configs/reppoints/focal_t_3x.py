# RepPoints V2 as Swin Transformer's authors released it: a BiFPN, scores that predict the IoU, and
# shorter sides of 480 to 960 pixels without the crop branch of their other detectors. Focal
# Transformer's slides give neither scales nor drop path; Swin's 0.2 is also Focal-T's in detection.
_base_ = [
    '../_base_/backbones/focal_t.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)
model = dict(
    type='RepPointsDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(out_indices=(1, 2, 3), **_base_.pop('backbone')),
    neck=dict(
        type='focal_mm.BiFPN',
        in_channels=[192, 384, 768],
        out_channels=256,
        num_outs=5,
        num_repeat=2,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='focal_mm.RepPointsV2Head',
        num_classes=80,
        in_channels=256,
        feat_channels=256,
        point_feat_channels=256,
        stacked_convs=3,
        shared_stacked_convs=1,
        corner_dim=64,
        corner_iou=0.7,
        num_points=9,
        gradient_mul=0.1,
        point_strides=[8, 16, 32, 64, 128],
        point_base_scale=4,
        norm_cfg=norm_cfg,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox_init=dict(type='GIoULoss', loss_weight=1.0),
        loss_bbox_refine=dict(type='GIoULoss', loss_weight=2.0),
        loss_heatmap=dict(type='GaussianFocalLoss', alpha=2.0, gamma=4.0, loss_weight=0.25),
        loss_offset=dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
        loss_sem=dict(type='focal_mm.SeparateFocalLoss', gamma=2.0, alpha=0.25, loss_weight=0.1),
    ),
    train_cfg=dict(
        init=dict(
            assigner=dict(type='PointAssigner', scale=4, pos_num=1),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        refine=dict(
            assigner=dict(type='ATSSAssigner', topk=9),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='RandomChoiceResize',
    scales=[(side, 1333) for side in range(480, 961, 32)],
    keep_ratio=True,
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
