# Batch 1024 as 8 GPUs x 128 images; the augmentation is Swin's.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

train_dataloader = dict(batch_size=128)
