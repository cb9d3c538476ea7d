_base_ = './mixformer_b1_200e.py'

model = dict(backbone=dict(channel_interaction=False))
