_base_ = '../mask_rcnn/mixformer_b1_1x.py'

model = dict(
    backbone=dict(
        dwconv_kernel_size=5,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_kernel_5/epoch_200.pth'),
    )
)
