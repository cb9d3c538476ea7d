_base_ = './focalnet_t.py'

model = dict(backbone=dict(arch='tiny_srf'))
