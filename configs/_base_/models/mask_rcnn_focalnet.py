# FocalNet paper, section 4.2; this is the stochastic depth of the 1x schedule.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../backbones/focalnet_t.py']

model = dict(
    backbone=dict(_base_.pop('backbone'), _delete_=True, drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
