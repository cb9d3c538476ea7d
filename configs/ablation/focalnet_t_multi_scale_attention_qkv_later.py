_base_ = '../imagenet/focalnet_t.py'

model = dict(backbone=dict(modulation='multi_scale_attention_qkv_later'))
