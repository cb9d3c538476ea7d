_base_ = './mixformer_b1_3x.py'

model = dict(
    backbone=dict(arch='b4', init_cfg=dict(checkpoint='focal://mixformer_b4_in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
