_base_ = './focal_t_conv.py'

model = dict(backbone=dict(arch='fast_tiny'))
