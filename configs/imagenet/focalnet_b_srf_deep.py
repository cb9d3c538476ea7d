_base_ = './focalnet_b_srf.py'

model = dict(backbone=dict(arch='base_srf_deep'), head=dict(in_channels=768))
