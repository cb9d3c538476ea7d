# The same with a Focal Transformer. Its regions grow, and its last stages attend to surroundings
# too, as in section 4.2 of its paper.
_base_ = './focalnet_mask_rcnn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8)),
        window_size=3,
        focal_windows=(9, 7, 5, 3),
        expand_sizes=1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/study/focal/pretraining/focal_attention/seed0/iter_800.pth',
            prefix='backbone.',
        ),
    )
)
