_base_ = [
    '../_base_/models/classifier_mixformer.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_mixformer.py',
    '../_base_/default_runtime_cls.py',
]
