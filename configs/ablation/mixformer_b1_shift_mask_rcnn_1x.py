_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        use_shift=True,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_shift/epoch_200.pth'),
    )
)
