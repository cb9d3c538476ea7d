_base_ = './mixformer_b1_3x.py'

model = dict(
    backbone=dict(arch='b3', init_cfg=dict(checkpoint='focal://mixformer_b3_in1k')),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
