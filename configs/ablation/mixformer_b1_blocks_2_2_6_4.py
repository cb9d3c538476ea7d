_base_ = './mixformer_b1_200e.py'

model = dict(backbone=dict(depths=(2, 2, 6, 4)))
