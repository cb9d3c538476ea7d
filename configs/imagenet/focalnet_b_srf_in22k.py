# The pre-training of Table 4; stochastic depth is Swin-B's.
_base_ = [
    '../_base_/models/classifier_focalnet.py',
    '../_base_/datasets/imagenet22k.py',
    '../_base_/schedules/imagenet22k_90e.py',
    '../_base_/default_runtime_cls.py',
]

model = dict(
    backbone=dict(arch='base_srf', drop_path_rate=0.2),
    head=dict(num_classes=21841, in_channels=1024),
)
