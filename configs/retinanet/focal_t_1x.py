# One scale of images (Focal Transformer paper, section 4.2). Swin published no RetinaNet; the paper
# trained Swin's with the same optimizer and schedule as Mask R-CNN, and so are ours.
_base_ = [
    '../_base_/models/retinanet_focal_transformer.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
