# Swin's file for Cascade Mask R-CNN at 3x; its drop path, 0.2, is also Focal-T's in detection.
_base_ = [
    '../_base_/models/cascade_4conv1fc.py',
    '../_base_/backbones/focal_t.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
