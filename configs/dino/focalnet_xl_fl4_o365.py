_base_ = './focalnet_l_fl4_o365.py'

model = dict(
    backbone=dict(
        arch='xlarge_fl4',
        # FocalNet-DINO divides the gathered context, as the ImageNet-22K weights did not.
        normalize_modulator=True,
        init_cfg=dict(checkpoint='focal://focalnet_xlarge_fl4_in22k'),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
