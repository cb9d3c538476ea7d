# Batch 1024 as 8 GPUs x 128 images; the augmentation is Swin's.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_root = 'data/imagenet'  # as the base has it: --cfg-options data_root=DIR moves it
train_dataloader = dict(batch_size=128)
