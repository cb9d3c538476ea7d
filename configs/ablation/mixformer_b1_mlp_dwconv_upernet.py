_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        mlp_dwconv=True,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_mlp_dwconv/epoch_200.pth'),
    )
)
