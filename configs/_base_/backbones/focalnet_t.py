# FocalNet-T in dense prediction (FocalNet paper, sections 4.2 and 4.3): ImageNet weights, kernels
# larger by 6. A config takes the variable out of its bases with _base_.pop('backbone'), so that
# the finished config holds the backbone once, as model.backbone.
backbone = dict(
    type='FocalNet',
    arch='tiny_lrf',
    focal_windows=9,
    drop_path_rate=0.3,
    init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_tiny_lrf_in1k'),
)
