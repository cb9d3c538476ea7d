# mmpretrain's ConvNeXt of the same size.
_base_ = './focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=(1, 1, 2, 1), channels=(24, 48, 96, 192)),
    ),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=20, in_channels=192),
)
