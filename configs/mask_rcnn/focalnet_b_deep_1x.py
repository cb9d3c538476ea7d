_base_ = './focalnet_b_1x.py'

model = dict(
    backbone=dict(
        arch='base_lrf_deep',
        use_conv_embed=False,  # as in the official detector; Table 3's classifiers overlap
        init_cfg=dict(checkpoint='focal://focalnet_base_lrf_deep_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
