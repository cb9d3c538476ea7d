_base_ = './focalnet_l_fl4_5scale_12e.py'

model = dict(
    backbone=dict(arch='huge_fl4', init_cfg=dict(checkpoint='focal://focalnet_huge_fl4_in22k')),
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
