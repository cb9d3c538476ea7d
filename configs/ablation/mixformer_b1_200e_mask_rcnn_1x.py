_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_200e/epoch_200.pth'))
)
