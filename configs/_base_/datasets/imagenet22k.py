# ImageNet-22K as mmpretrain's ImageNet21k, with Swin's augmentation, batch 4096 as 32 GPUs x 128
# images. It has no validation split: hold images out in data/imagenet21k/val, which needs the same
# folders as train/.
_base_ = './imagenet.py'

data_root = 'data/imagenet21k'
data_preprocessor = dict(num_classes=21841)
train_dataloader = dict(dataset=dict(type='ImageNet21k', data_root=data_root))
val_dataloader = dict(
    dataset=dict(type='ImageNet21k', data_root=data_root, split='', data_prefix='val')
)
test_dataloader = val_dataloader
