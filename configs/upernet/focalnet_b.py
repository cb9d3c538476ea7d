_base_ = './focalnet_t.py'

model = dict(
    backbone=dict(arch='base_lrf', init_cfg=dict(checkpoint='focal://focalnet_base_lrf_in1k')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
