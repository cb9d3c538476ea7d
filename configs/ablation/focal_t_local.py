_base_ = '../imagenet/focal_t.py'

model = dict(backbone=dict(focal_levels=1))
