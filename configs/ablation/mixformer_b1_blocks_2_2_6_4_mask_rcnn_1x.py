_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        depths=(2, 2, 6, 4),
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_blocks_2_2_6_4/epoch_200.pth'),
    )
)
