# DINO on all four maps of FocalNet-L with 4 focal levels, and on a fifth.
_base_ = './dino.py'

num_levels = 5
model = dict(
    num_feature_levels=num_levels,
    backbone=dict(
        arch='large_fl4',
        out_indices=(0, 1, 2, 3),
        init_cfg=dict(checkpoint='focal://focalnet_large_fl4_in22k'),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536], num_outs=num_levels),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=num_levels))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=num_levels))),
)
