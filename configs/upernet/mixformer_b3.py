_base_ = './mixformer_b1.py'

model = dict(
    backbone=dict(arch='b3', init_cfg=dict(checkpoint='focal://mixformer_b3_in1k')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
