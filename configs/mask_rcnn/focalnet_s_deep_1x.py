_base_ = './focalnet_s_1x.py'

model = dict(
    backbone=dict(
        arch='small_lrf_deep',
        use_conv_embed=False,  # as in the official detector; Table 3's classifiers overlap
        init_cfg=dict(checkpoint='focal://focalnet_small_lrf_deep_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
