_base_ = './focal_t_1x.py'

model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='focal://focal_small_in1k')
    )
)
