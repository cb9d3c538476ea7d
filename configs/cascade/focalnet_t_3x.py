_base_ = [
    '../_base_/models/cascade_4conv1fc.py',
    '../_base_/backbones/focalnet_t.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_base_.pop('backbone'), _delete_=True, focal_windows=(11, 9, 9, 7)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
