# From ImageNet-22K to ImageNet-1K as in Swin's code, whose table FocalNet's Table 4 extends; the
# text that we have of FocalNet's paper gives no recipe. Drop path 0.2 is that of all of Swin's
# files for it.
_base_ = './imagenet_300e.py'

optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=4e-7, by_epoch=True, begin=5),
]
train_cfg = dict(max_epochs=30)
