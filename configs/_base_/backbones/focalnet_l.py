# FocalNet-L with the kernels 5, 7, 9 of its ImageNet-22K weights (FocalNet paper, Tables 8 and 9).
backbone = dict(
    type='FocalNet',
    arch='large_fl3',
    drop_path_rate=0.3,
    init_cfg=dict(type='Pretrained', checkpoint='focal://focalnet_large_fl3_in22k'),
)
