_base_ = [
    '../_base_/models/mask_rcnn_focal_transformer.py', '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py', '../_base_/default_runtime.py'
]
