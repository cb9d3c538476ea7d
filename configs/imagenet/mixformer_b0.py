_base_ = './mixformer_b1.py'

model = dict(backbone=dict(arch='b0'), head=dict(in_channels=192))
