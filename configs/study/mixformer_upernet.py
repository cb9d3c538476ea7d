# The same with a MixFormer. Its windows grow, which the paper's do not, so that there are biases to
# fit.
_base_ = './focalnet_upernet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MixFormer',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        window_size=6,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/study/mixformer/pretraining/both_interactions/seed0/iter_800.pth',
            prefix='backbone.',
        ),
    )
)
