# The key of the whole backbone, with a tenth of the learning rate, hides from its norms that norms
# do not decay: they need keys of their own, as Swin's in mmdet.
norm = dict(lr_mult=0.1, decay_mult=0.0)
backbone_norms = {
    'backbone.patch_embed.norm': norm,
    'backbone.norm': norm,
    **{f'backbone.layers.{stage}.downsample.norm': norm for stage in range(3)},
    **{
        f'backbone.layers.{stage}.blocks.{block}.norm': norm
        for stage, depth in enumerate((2, 2, 18, 2))
        for block in range(depth)
    },
}
