# Sparse R-CNN's own optimizer, in full precision as in FocalNet's official config.
_base_ = './adamw_3x.py'

optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-5, weight_decay=1e-4),
    clip_grad=dict(max_norm=1, norm_type=2),
)
