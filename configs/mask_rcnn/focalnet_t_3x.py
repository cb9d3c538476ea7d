_base_ = [
    '../_base_/models/mask_rcnn_focalnet.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.3))
