_base_ = '../imagenet/focalnet_t.py'

model = dict(backbone=dict(modulation='convnet'))
