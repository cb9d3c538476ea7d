# The published weights are the backbone without its head.
_base_ = './focalnet_h_fl3_in22k.py'

model = dict(backbone=dict(arch='huge_fl4'))
