_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../backbones/mixformer_b1.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
