_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        depths=(2, 2, 8, 2),
        embed_dims=(32, 64, 160, 256),
        num_heads=(2, 4, 10, 16),
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_blocks_2_2_8_2/epoch_200.pth'),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
