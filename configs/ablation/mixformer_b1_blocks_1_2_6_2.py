_base_ = './mixformer_b1_200e.py'

model = dict(
    backbone=dict(
        depths=(1, 2, 6, 2),
        embed_dims=(32, 64, 160, 320),
        num_heads=(2, 4, 10, 20),
    ),
    head=dict(in_channels=320),
)
