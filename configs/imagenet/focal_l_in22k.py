# The pre-training for HTC++, DyHead and UPerNet; stochastic depth is Swin's.
_base_ = [
    '../_base_/models/classifier_focal_transformer.py',
    '../_base_/datasets/imagenet22k.py',
    '../_base_/schedules/imagenet22k_90e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(backbone=dict(arch='large'), head=dict(num_classes=21841, in_channels=1536))
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomErasing']
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
