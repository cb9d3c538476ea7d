# Swin's schedule, which FocalNet and Focal Transformer follow: AdamW 1e-3, 20 epochs of warm-up,
# gradients clipped, and half precision, the default of all three programs (--amp-opt-level O1).
#
# FocalNet's config.py stands at 5 epochs of warm-up and a fifth of the learning rate, with the 20
# epochs and the 5e-4 (for 512 images) of ImageNet-1K in comments beside them.
#
# The cosine begins after the warm-up, as in mmpretrain and in Swin's code today. In the other two
# programs it counts from the first epoch, so that their learning rate is lower by up to 6 % of its
# peak, at epoch 113.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(type='AmpOptimWrapper', clip_grad=dict(max_norm=5.0))
