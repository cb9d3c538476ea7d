# MixFormer-B1 of Table 3 as the official classifier; mixing of images as in its PaddleClas config,
# stochastic depth by the arch.
_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

model = dict(
    backbone=dict(_delete_=True, type='MixFormer', arch='b1', out_indices=(3,), out_norm=False),
    neck=None,
    head=dict(type='focal_mm.TokenClsHead', in_channels=256, proj_channels=1280),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)
