_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        use_shift=True,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_shift/epoch_200.pth'),
    )
)
