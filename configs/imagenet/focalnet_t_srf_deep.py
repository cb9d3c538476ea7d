_base_ = './focalnet_t_srf.py'

model = dict(backbone=dict(arch='tiny_srf_deep'), head=dict(in_channels=512))
