# FocalNet-T of Table 1 as the official classifier; losses and mixing of images are Swin's.
_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch='tiny_lrf',
        drop_path_rate=0.2,
        out_indices=(3,),
        out_norm=False,
    ),
    neck=None,
    head=dict(type='focal_mm.TokenClsHead'),
)
