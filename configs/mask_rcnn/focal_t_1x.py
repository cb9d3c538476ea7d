# One scale of images (Focal Transformer paper, section 4.2), where Swin's file for 1x has several.
# The steps are Swin's, whose pipelines the authors say they follow; the drop path is the paper's.
_base_ = [
    '../_base_/models/mask_rcnn_focal_transformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
