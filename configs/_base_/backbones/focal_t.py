# Focal-T in dense prediction (Focal Transformer paper, section 4.2): ImageNet weights, larger focal
# windows.
backbone = dict(
    type='FocalTransformer',
    arch='tiny',
    focal_windows=(15, 13, 9, 7),
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='focal://focal_tiny_in1k'),
)
