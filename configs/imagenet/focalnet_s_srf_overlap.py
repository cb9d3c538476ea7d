_base_ = './focalnet_s_srf.py'

model = dict(backbone=dict(use_conv_embed=True))
