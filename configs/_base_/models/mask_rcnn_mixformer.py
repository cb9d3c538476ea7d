# MixFormer paper, section 4.2: ImageNet weights; stochastic depth as on ImageNet, by the arch.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MixFormer',
        arch='b1',
        # Of two images a GPU, the norm of the pooled channels would see two values.
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='focal://mixformer_b1_in1k')),
    neck=dict(in_channels=[32, 64, 128, 256]))
