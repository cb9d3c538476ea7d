_base_ = [
    '../_base_/models/mask_rcnn_focal_transformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
