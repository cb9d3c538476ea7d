_base_ = './focalnet_t_1x.py'

model = dict(
    backbone=dict(
        arch='tiny_lrf_deep',
        use_conv_embed=False,  # as in the official detector; Table 3's classifiers overlap
        drop_path_rate=0.2,  # not T's 0.1: as the authors trained the deeper net
        init_cfg=dict(checkpoint='focal://focalnet_tiny_lrf_deep_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
