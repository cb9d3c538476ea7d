_base_ = './focalnet_s_srf.py'

model = dict(backbone=dict(arch='small_srf_deep'), head=dict(in_channels=512))
