_base_ = './focalnet_l_fl4_5scale_12e.py'

model = dict(
    backbone=dict(arch='xlarge_fl4', init_cfg=dict(checkpoint='focal://focalnet_xlarge_fl4_in22k')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
