_base_ = './focal_t.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint='focal://focal_base_in1k')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
