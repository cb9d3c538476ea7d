# FocalNet paper, section 4.2: ImageNet weights, kernels larger by 6.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalNet',
        arch='tiny_lrf',
        focal_windows=9,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_tiny_lrf_in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]))
