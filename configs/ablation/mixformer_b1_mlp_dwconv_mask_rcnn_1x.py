_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        mlp_dwconv=True,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_mlp_dwconv/epoch_200.pth'),
    )
)
