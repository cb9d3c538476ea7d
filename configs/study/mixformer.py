# The same with a MixFormer, whose classifier projects to more channels.
_base_ = './focalnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MixFormer',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        window_size=3,
        out_indices=(3,),
        out_norm=False,
        init_cfg=[
            dict(type='TruncNormal', layer='Linear', std=0.05),
            dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
        ],
    )
)
