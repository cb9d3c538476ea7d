_base_ = [
    '../_base_/models/classifier_focalnet.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_30e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(
        arch='base_srf',
        init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_base_srf_in22k'),
    ),
    head=dict(in_channels=1024),
)
