# ImageNet-22K as in Swin's code, which FocalNet and Focal Transformer follow; the text that we have
# of their papers gives no recipe. AdamW 1e-3 for a batch of 4096, linear decay.
_base_ = './imagenet_300e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(
        type='LinearLR',
        start_factor=1,
        end_factor=1e-2,
        by_epoch=True,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
auto_scale_lr = dict(base_batch_size=4096)
