# Swin's schedule, which FocalNet and Focal Transformer follow: AdamW 1e-3, 20 epochs of warm-up,
# gradients clipped, and half precision, the default of all three programs (--amp-opt-level O1).
#
# FocalNet's config.py stands as it was left after ImageNet-22K, at 5 epochs of warm-up and a
# quarter of the learning rate, with ImageNet-1K's figures in a comment beside them.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(type='AmpOptimWrapper', clip_grad=dict(max_norm=5.0))
