_base_ = '../imagenet/focal_t.py'

model = dict(backbone=dict(use_shift=True))
