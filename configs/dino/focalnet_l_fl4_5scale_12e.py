# detrex's dino_focalnet_large_lrf_384_fl4_5scale_12ep.
_base_ = '../_base_/models/dino_5scale.py'

model = dict(
    # detrex does not divide the gathered context, which the ImageNet-22K weights did.
    backbone=dict(normalize_modulator=False),
    # detrex embeds positions as Deformable DETR does, FocalNet-DINO and mmdet as DINO.
    positional_encoding=dict(offset=-0.5, temperature=10000),
)
