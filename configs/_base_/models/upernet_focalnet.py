# FocalNet paper, section 4.3, and the official configs: kernels larger by 6.
_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch='tiny_lrf',
        focal_windows=9,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_tiny_lrf_in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150))
