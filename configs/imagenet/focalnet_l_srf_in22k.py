_base_ = './focalnet_b_srf_in22k.py'

model = dict(backbone=dict(arch='large_srf'), head=dict(in_channels=1536))
