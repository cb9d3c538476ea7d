_base_ = '../imagenet/focalnet_t.py'

model = dict(backbone=dict(focal_levels=0))
