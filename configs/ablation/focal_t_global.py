_base_ = '../imagenet/focal_t.py'

model = dict(backbone=dict(expand_sizes=0))
