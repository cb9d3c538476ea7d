_base_ = './focal_t_3x.py'

model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint='focal://focal_base_in1k')
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
