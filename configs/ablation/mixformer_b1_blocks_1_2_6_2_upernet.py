_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        depths=(1, 2, 6, 2),
        embed_dims=(32, 64, 160, 320),
        num_heads=(2, 4, 10, 20),
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_blocks_1_2_6_2/epoch_200.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
