_base_ = '../mask_rcnn/focalnet_t_1x.py'

model = dict(
    backbone=dict(
        modulation='top_only',
        init_cfg=dict(checkpoint='work_dirs/ablation/focalnet_t_top_only/epoch_300.pth'),
    ),
)
