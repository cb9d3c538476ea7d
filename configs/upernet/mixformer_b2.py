_base_ = './mixformer_b1.py'

model = dict(backbone=dict(arch='b2', init_cfg=dict(checkpoint='focal://mixformer_b2_in1k')))
