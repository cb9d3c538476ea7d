# Focal Transformer paper, section 4.2: ImageNet weights, larger focal windows.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch='tiny',
        focal_windows=(15, 13, 9, 7),
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='focal://focal_tiny_in1k')),
    neck=dict(in_channels=[192, 384, 768], start_level=0))
