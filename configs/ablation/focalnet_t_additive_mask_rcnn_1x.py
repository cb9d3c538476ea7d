_base_ = '../mask_rcnn/focalnet_t_1x.py'

model = dict(
    backbone=dict(
        modulation='additive',
        init_cfg=dict(checkpoint='work_dirs/ablation/focalnet_t_additive/epoch_300.pth'),
    ),
)
