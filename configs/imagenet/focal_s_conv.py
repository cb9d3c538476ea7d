# Stochastic depth as in the official config; the paper does not have this network.
_base_ = './focal_t.py'

model = dict(backbone=dict(arch='small_conv', drop_path_rate=0.3))
