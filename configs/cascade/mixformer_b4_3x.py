# The backbone and schedule are those of ../mask_rcnn/mixformer_b4_3x.py; the heads are Swin's.
_base_ = [
    '../_base_/models/cascade_4conv1fc.py',
    '../_base_/backbones/mixformer_b4.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
