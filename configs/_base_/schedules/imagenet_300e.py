# Swin's schedule, which FocalNet and Focal Transformer follow: AdamW 1e-3, 20 epochs of warm-up.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
