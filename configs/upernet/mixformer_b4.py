_base_ = './mixformer_b1.py'

model = dict(
    backbone=dict(arch='b4', init_cfg=dict(checkpoint='focal://mixformer_b4_in1k')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
