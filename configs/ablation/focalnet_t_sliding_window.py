_base_ = '../imagenet/focalnet_t.py'

model = dict(backbone=dict(modulation='sliding_window'))
