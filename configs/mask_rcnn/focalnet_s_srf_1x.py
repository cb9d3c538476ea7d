_base_ = './focalnet_s_1x.py'

model = dict(
    backbone=dict(arch='small_srf', init_cfg=dict(checkpoint='focal://focalnet_small_srf_in1k'))
)
