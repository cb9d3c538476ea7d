_base_ = './mixformer_b1_200e.py'

model = dict(
    backbone=dict(depths=(2, 2, 8, 2), embed_dims=(32, 64, 160, 256), num_heads=(2, 4, 10, 16))
)
