# Here all maps are larger than a window, so that nothing limits it; see the classifier.
_base_ = '../mask_rcnn/focal_t_1x.py'

model = dict(
    backbone=dict(
        window_size=14,
        init_cfg=dict(checkpoint='work_dirs/ablation/focal_t_window_14/epoch_300.pth'),
    ),
)
