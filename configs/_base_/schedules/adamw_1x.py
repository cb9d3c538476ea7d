# Swin's 1x, whose detection code Focal Transformer follows and MixFormer compares with: the steps
# of mmdet's own 1x. Batch 16 as 8 GPUs x 2 images; --auto-scale-lr adapts the learning rate to
# another batch. Half precision, as all of Swin's and FocalNet's detectors but Sparse R-CNN.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
