# FocalNet paper, section 4.3, and the official configs.
_base_ = ['mmseg::_base_/models/upernet_r50.py', '../backbones/focalnet_t.py']

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
)
