_base_ = [
    '../_base_/models/sparse_rcnn.py', '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/sparse_rcnn_3x.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch='tiny',
        focal_windows=(15, 13, 9, 7),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='focal://focal_tiny_in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]))
