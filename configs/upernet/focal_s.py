_base_ = './focal_t.py'

model = dict(backbone=dict(arch='small', init_cfg=dict(checkpoint='focal://focal_small_in1k')))
