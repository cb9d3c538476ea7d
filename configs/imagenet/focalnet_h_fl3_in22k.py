# The published weights have 21,842 classes; stochastic depth as in the official config.
_base_ = './focalnet_b_srf_in22k.py'

model = dict(
    backbone=dict(arch='huge_fl3', drop_path_rate=0.5),
    head=dict(num_classes=21842, in_channels=2816),
)
data_preprocessor = dict(num_classes=21842)
