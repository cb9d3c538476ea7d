_base_ = './mixformer_b1_3x.py'

model = dict(backbone=dict(arch='b2', init_cfg=dict(checkpoint='focal://mixformer_b2_in1k')))
