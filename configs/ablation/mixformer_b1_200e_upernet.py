_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_200e/epoch_200.pth'))
)
