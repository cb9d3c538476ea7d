_base_ = '../imagenet/focal_t.py'

model = dict(backbone=dict(depths=(2, 2, 4, 2)))
