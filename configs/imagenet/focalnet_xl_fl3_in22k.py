_base_ = './focalnet_l_fl3_in22k.py'

model = dict(backbone=dict(arch='xlarge_fl3'), head=dict(in_channels=2048))
