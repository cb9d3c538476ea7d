# mmpretrain's Swin Transformer of the same size.
_base_ = './focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        img_size=48,
        window_size=3,
        pad_small_map=True,
        drop_path_rate=0.0,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.05),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=20, in_channels=192),
)
