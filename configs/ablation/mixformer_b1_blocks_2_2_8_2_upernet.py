_base_ = '../upernet/mixformer_b1.py'

model = dict(
    backbone=dict(
        depths=(2, 2, 8, 2),
        embed_dims=(32, 64, 160, 256),
        num_heads=(2, 4, 10, 16),
        init_cfg=dict(checkpoint='work_dirs/ablation/mixformer_b1_blocks_2_2_8_2/epoch_200.pth'),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
