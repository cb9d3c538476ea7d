_base_ = [
    '../_base_/models/retinanet_focal_transformer.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
