# As ../mask_rcnn/mixformer_b4_3x.py; the heads are Swin's.
_base_ = [
    '../_base_/models/cascade_4conv1fc.py', '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='MixFormer',
        arch='b4',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='focal://mixformer_b4_in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]))
