# One scale of images (MixFormer paper, section 4.2), where Swin's file for 1x has several. The
# paper leaves the optimizer to its appendix: it is Swin's, AdamW at 1e-4 with decay 0.05 and steps
# at 8 and 11, in half precision.
_base_ = [
    '../_base_/models/mask_rcnn_mixformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
