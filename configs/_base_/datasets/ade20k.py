# Batch 16 as 8 GPUs x 2 images.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

train_dataloader = dict(batch_size=2)
