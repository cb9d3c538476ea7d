_base_ = './focalnet_t.py'

model = dict(
    backbone=dict(arch='small_lrf', init_cfg=dict(checkpoint='focal://focalnet_small_lrf_in1k'))
)
