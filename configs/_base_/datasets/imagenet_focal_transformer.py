# Focal Transformer paper, section 4.1: the augmentation without random erasing. The authors'
# config.py still has Swin's default, 0.25, and their yaml files say nothing of it.
_base_ = './imagenet.py'

train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomErasing']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
