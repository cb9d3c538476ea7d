_base_ = '../mask_rcnn/focal_t_1x.py'

model = dict(
    backbone=dict(
        use_shift=True,
        init_cfg=dict(checkpoint='work_dirs/ablation/focal_t_shift/epoch_300.pth'),
    ),
)
