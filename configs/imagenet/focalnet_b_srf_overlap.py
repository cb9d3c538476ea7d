_base_ = './focalnet_b_srf.py'

model = dict(backbone=dict(use_conv_embed=True))
