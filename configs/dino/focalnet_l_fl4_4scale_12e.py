# detrex's dino_focal_large_lrf_384_fl4_4scale_12ep.
_base_ = './focalnet_l_4scale_12e.py'

model = dict(
    backbone=dict(
        arch='large_fl4',
        # detrex does not divide the gathered context, which the ImageNet-22K weights did.
        normalize_modulator=False,
        init_cfg=dict(checkpoint='focal://focalnet_large_fl4_in22k'),
    )
)
