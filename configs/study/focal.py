# The same with a Focal Transformer. Its maps have sides of 4, 2, 1 and 1
# windows.
_base_ = './focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        window_size=3,
        focal_windows=(5, 3, 1, 1),
        expand_sizes=(1, 1, 0, 0),
        out_indices=(3,),
        out_norm=False,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.05),
    )
)
