# The Focal Transformer paper trains as DyHead's authors did (section 4.2): mmdet's config of
# Swin-L with another backbone, in half precision as the authors' other detectors. The scales of the
# multi-scale test are not given.
_base_ = [
    'mmdet::dyhead/atss_swin-l-p4-w12_fpn_dyhead_ms-2x_coco.py',
    '../_base_/backbones/focal_l.py',
]

custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.pop('backbone')),
    neck=[dict(_base_.model.neck[0], in_channels=[392, 784, 1568]), _base_.model.neck[1]],
)

tta_model = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100)
)
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(2000, side), keep_ratio=True, backend='pillow')
                for side in (800, 1000, 1200, 1400)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]

# mmdet counts twelve epochs of a dataset that is read twice.
train_dataloader = dict(dataset=dict(_delete_=True, **_base_.train_dataloader.dataset.dataset))
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
optim_wrapper = dict(type='AmpOptimWrapper', paramwise_cfg=dict(norm_decay_mult=0.0))
