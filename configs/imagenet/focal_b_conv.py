# Stochastic depth as in the official config; the paper does not have this network.
_base_ = './focal_t.py'

model = dict(backbone=dict(arch='base_conv', drop_path_rate=0.5), head=dict(in_channels=1024))
