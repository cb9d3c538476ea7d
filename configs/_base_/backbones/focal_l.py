# Focal-L. The paper does not give its stochastic depth in detection; 0.5 is Focal-B's.
_base_ = './focal_t.py'

backbone = dict(
    arch='large',
    drop_path_rate=0.5,
    init_cfg=dict(checkpoint='focal://focal_large_in22k'),
)
