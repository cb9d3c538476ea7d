_base_ = './focalnet_b_3x.py'

model = dict(
    backbone=dict(arch='base_srf', init_cfg=dict(checkpoint='focal://focalnet_base_srf_in1k'))
)
