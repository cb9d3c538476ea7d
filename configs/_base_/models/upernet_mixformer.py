# MixFormer paper, section 4.3; stochastic depth as on ImageNet, by the arch.
_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='MixFormer',
        arch='b1',
        norm_eval=True,  # as in detection, for batches are as small
        init_cfg=dict(type='Pretrained', checkpoint='focal://mixformer_b1_in1k')),
    decode_head=dict(in_channels=[32, 64, 128, 256], num_classes=150),
    auxiliary_head=dict(in_channels=128, num_classes=150))
