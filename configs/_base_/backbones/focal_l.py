# Focal-L has 196 channels (Focal Transformer paper, section 4.1), which do not divide into heads of
# 32; the paper gives no other number. It does not give the stochastic depth in detection either;
# 0.5 is that of Focal-B.
_base_ = './focal_t.py'

backbone = dict(
    arch='large',
    embed_dims=196,
    num_heads=(7, 14, 28, 56),
    drop_path_rate=0.5,
    init_cfg=dict(checkpoint='focal://focal_large_in22k'),
)
