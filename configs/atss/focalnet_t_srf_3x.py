_base_ = './focalnet_t_3x.py'

model = dict(
    backbone=dict(arch='tiny_srf', init_cfg=dict(checkpoint='focal://focalnet_tiny_srf_in1k'))
)
