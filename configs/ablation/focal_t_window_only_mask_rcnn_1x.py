_base_ = '../mask_rcnn/focal_t_1x.py'

model = dict(
    backbone=dict(
        focal_levels=1,
        expand_sizes=0,
        init_cfg=dict(checkpoint='work_dirs/ablation/focal_t_window_only/epoch_300.pth'),
    ),
)
