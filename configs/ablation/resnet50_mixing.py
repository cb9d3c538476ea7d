# MixFormer paper, Table 12, trained as MixFormer-B1, with its norm and projection before the
# classifier: the paper says only that the setting is its own.
_base_ = '../imagenet/mixformer_b1.py'

model = dict(
    backbone=dict(_delete_=True, type='MixingResNet', depth=50, out_indices=(3,)),
    head=dict(in_channels=512),
)
