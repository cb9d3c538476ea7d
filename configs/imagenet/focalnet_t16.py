_base_ = './focalnet_t.py'

model = dict(
    backbone=dict(arch='tiny_iso', drop_path_rate=0.2, out_indices=(0,)), head=dict(in_channels=192)
)
