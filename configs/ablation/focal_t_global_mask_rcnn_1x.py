_base_ = '../mask_rcnn/focal_t_1x.py'

model = dict(
    backbone=dict(
        expand_sizes=0,
        init_cfg=dict(checkpoint='work_dirs/ablation/focal_t_global/epoch_300.pth'),
    ),
)
