# Swin and Focal Transformer published no Sparse R-CNN: heads and optimizer are those of FocalNet's,
# by the same authors. The drop path is Focal-T's in detection.
_base_ = [
    '../_base_/models/sparse_rcnn.py',
    '../_base_/backbones/focal_t.py',
    '../_base_/datasets/coco_detection_ms.py',
    '../_base_/schedules/sparse_rcnn_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=_base_.pop('backbone'),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
