_base_ = './focal_b_conv.py'

model = dict(backbone=dict(arch='fast_base'))
