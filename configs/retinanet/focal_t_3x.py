# As ../mask_rcnn/focal_t_3x.py, with the crop branch of Swin's code.
_base_ = [
    '../_base_/models/retinanet_focal_transformer.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]
