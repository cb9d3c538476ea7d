_base_ = './focalnet_b_22k.py'

model = dict(
    backbone=dict(arch='large_srf', init_cfg=dict(checkpoint='focal://focalnet_large_srf_in22k')),
    head=dict(in_channels=1536),
)
