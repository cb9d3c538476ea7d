# MixFormer-B1 in dense prediction (MixFormer paper, section 4.2): ImageNet weights; the stochastic
# depth is the arch's, as on ImageNet, because the paper leaves it to its appendix.
backbone = dict(
    type='MixFormer',
    arch='b1',
    # With two images a GPU, the BatchNorm of the pooled channels would see two values a channel.
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='focal://mixformer_b1_in1k'),
)
