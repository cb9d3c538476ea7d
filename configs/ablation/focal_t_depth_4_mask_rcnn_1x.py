_base_ = '../mask_rcnn/focal_t_1x.py'

model = dict(
    backbone=dict(
        depths=(2, 2, 4, 2),
        init_cfg=dict(checkpoint='work_dirs/ablation/focal_t_depth_4/epoch_300.pth'),
    ),
)
