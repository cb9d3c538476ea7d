_base_ = './focal_s_conv.py'

model = dict(backbone=dict(arch='fast_small'))
