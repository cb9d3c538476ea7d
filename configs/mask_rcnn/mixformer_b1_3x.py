# The paper leaves the optimizer and the details of multi-scale training to its appendix: they are
# Swin's, AdamW at 1e-4 with decay 0.05, steps at 27 and 33, and the crop branch.
_base_ = [
    '../_base_/models/mask_rcnn_mixformer.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]
