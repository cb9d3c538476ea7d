_base_ = [
    '../_base_/models/classifier_focal_transformer.py',
    '../_base_/datasets/imagenet_focal_transformer.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/default_runtime_cls.py',
]
