_base_ = './focalnet_b.py'

model = dict(backbone=dict(arch='base_srf'))
