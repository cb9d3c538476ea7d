# detrex's dino_focal_large_lrf_384_4scale_12ep.
_base_ = '../_base_/models/dino.py'

# detrex embeds positions as Deformable DETR does, FocalNet-DINO and mmdet as DINO.
model = dict(positional_encoding=dict(offset=-0.5, temperature=10000))
