# Swin and Focal Transformer published no ATSS: heads and schedule are those of FocalNet's, by the
# same authors. The drop path is Focal-T's in detection.
_base_ = [
    '../_base_/models/atss.py',
    '../_base_/backbones/focal_t.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(**_base_.pop('backbone'), out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 768]),
)
