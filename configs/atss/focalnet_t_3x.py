_base_ = [
    '../_base_/models/atss.py', '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/adamw_3x.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch='tiny_lrf',
        focal_windows=(11, 9, 9, 7),
        drop_path_rate=0.3,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_tiny_lrf_in1k')),
    neck=dict(in_channels=[192, 384, 768]))
