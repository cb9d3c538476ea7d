# ImageNet-22K as in Swin's code, which FocalNet and Focal Transformer follow; the text that we have
# of their papers gives no recipe. AdamW 1e-3 for a batch of 4096, with a cosine that ends at 1e-5:
# Swin's *_22k.yaml files name no scheduler, and the default of its config.py is the cosine. Swin's
# paper says linear decay, and weight decay 0.01 where the files have 0.05.
_base_ = './imagenet_300e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=4096)
