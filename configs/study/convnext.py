# mmpretrain's ConvNeXt of the same size.
_base_ = './focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ConvNeXt',
        arch=dict(depths=(1, 1, 2, 1), channels=(28, 56, 112, 224)),
        init_cfg=dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.05),
    ),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=20, in_channels=224),
)
