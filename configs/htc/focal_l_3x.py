# HTC++, Swin Transformer's name for HTC with InstaBoost, shorter sides of 400 to 1400 pixels and
# soft-NMS; 3x with a weight decay of 0.1 (Focal Transformer paper, section 4.2), in half precision
# as the authors' other detectors. Swin published no file for it. The scale of the test images is
# not given; 1400 is the largest of training.
_base_ = ['mmdet::htc/htc_r50_fpn_1x_coco.py', '../_base_/backbones/focal_l.py']

custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)


# An import at the top would make mmengine read this file as a config of its other (lazy) kind.
def is_installed(package):
    from importlib.util import find_spec

    return find_spec(package) is not None


model = dict(
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    neck=dict(in_channels=[196, 392, 784, 1568]),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)

backend_args = _base_.backend_args
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='RandomResize', scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
if is_installed('instaboostfast'):
    train_pipeline.insert(1, dict(type='InstaBoost'))
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1600, 1400), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Boxes alone: mmdet merges no masks.
tta_model = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5), max_per_img=100)
)
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(1600, side), keep_ratio=True)
                for side in (800, 1000, 1200, 1400)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))],
        ],
    ),
]

train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))
    ),
)
