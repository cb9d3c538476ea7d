_base_ = './focalnet_t_3x.py'

model = dict(
    backbone=dict(
        arch='small_lrf',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='focal://focalnet_small_lrf_in1k'),
    )
)
