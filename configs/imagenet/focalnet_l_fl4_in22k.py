_base_ = './focalnet_l_fl3_in22k.py'

model = dict(backbone=dict(arch='large_fl4'))
