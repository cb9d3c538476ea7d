_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        spatial_interaction=False,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_channel/epoch_200.pth'),
    )
)
