_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        parallel=False,
        channel_interaction=False,
        spatial_interaction=False,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_successive/epoch_200.pth'),
    )
)
