_base_ = './focalnet_l_fl4_o365.py'

model = dict(
    backbone=dict(
        arch='huge_fl4',
        # Neither FocalNet-DINO nor the ImageNet-22K weights divide the gathered context.
        normalize_modulator=False,
        init_cfg=dict(checkpoint='focal://focalnet_huge_fl4_in22k'),
    ),
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
