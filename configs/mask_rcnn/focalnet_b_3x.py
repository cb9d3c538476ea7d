_base_ = './focalnet_t_3x.py'

model = dict(
    backbone=dict(
        arch='base_lrf',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='focal://focalnet_base_lrf_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
