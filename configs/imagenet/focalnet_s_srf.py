_base_ = './focalnet_s.py'

model = dict(backbone=dict(arch='small_srf'))
