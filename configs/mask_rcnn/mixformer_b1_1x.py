# The paper leaves the optimizer to its appendix: it is Swin's, AdamW at 1e-4 with decay 0.05. The
# steps are those of all 1x configs here.
_base_ = [
    '../_base_/models/mask_rcnn_mixformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]
