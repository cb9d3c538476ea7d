_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        dwconv_kernel_size=1,
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_kernel_1/epoch_200.pth'),
    )
)
