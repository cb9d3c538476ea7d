# MixFormer paper, Table 12. The recipe is MixFormer-B1's: the paper trains with its own setting. So are
# the norm and the projection before the classifier.
_base_ = '../imagenet/mixformer_b1.py'

model = dict(
    backbone=dict(_delete_=True, type='MixingResNet', depth=50, out_indices=(3,)),
    head=dict(in_channels=512),
)
