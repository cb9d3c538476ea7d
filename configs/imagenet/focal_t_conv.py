_base_ = './focal_t.py'

model = dict(backbone=dict(arch='tiny_conv'))
