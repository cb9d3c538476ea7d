_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', '../backbones/focal_t.py']

model = dict(
    backbone=dict(_delete_=True, out_indices=(1, 2, 3), **_base_.pop('backbone')),
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
