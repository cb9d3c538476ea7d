# Focal-T of Table 2 as the official classifier; losses and mixing of images are Swin's.
_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch='tiny',
        drop_path_rate=0.2,
        out_indices=(3,),
        out_norm=False,
    ),
    neck=None,
    head=dict(type='focal_mm.TokenClsHead'),
)
