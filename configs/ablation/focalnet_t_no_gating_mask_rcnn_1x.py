_base_ = '../mask_rcnn/focalnet_t_1x.py'

model = dict(
    backbone=dict(
        modulation='no_gating',
        init_cfg=dict(checkpoint='work_dirs/ablation/focalnet_t_no_gating/epoch_300.pth'),
    ),
)
