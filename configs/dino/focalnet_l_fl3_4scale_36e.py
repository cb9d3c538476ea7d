# detrex's dino_focal_large_3level_4scale_36ep.
_base_ = './focalnet_l_4scale_12e.py'

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[30], gamma=0.1)
]
