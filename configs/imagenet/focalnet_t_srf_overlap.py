_base_ = './focalnet_t_srf.py'

model = dict(backbone=dict(use_conv_embed=True))
