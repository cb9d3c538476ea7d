# The official PaddleClas configs of MixFormer-B1 to B3; gradients are not clipped, and precision is
# single.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(optimizer=dict(lr=8e-4, weight_decay=0.04))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.25e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20),
]
