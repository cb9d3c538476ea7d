# Focal-T in dense prediction (Focal Transformer paper, section 4.2): ImageNet weights, larger focal
# windows. Every map is larger than a window, so that all stages attend to surroundings: the paper's
# detectors have the parameters of these, 0.3 M more than without them in the last stage.
backbone = dict(
    type='FocalTransformer',
    arch='tiny',
    focal_windows=(15, 13, 9, 7),
    expand_sizes=3,
    drop_path_rate=0.2,
    init_cfg=dict(type='Pretrained', checkpoint='focal://focal_tiny_in1k'),
)
