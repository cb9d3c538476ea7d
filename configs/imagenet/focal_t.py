# The warm-up starts from 1e-6, as in the authors' config.py. The paper's section 4.1 says 1e-5,
# which is where the code lets the cosine end.
_base_ = [
    '../_base_/models/classifier_focal_transformer.py',
    '../_base_/datasets/imagenet_focal_transformer.py',
    '../_base_/schedules/imagenet_300e.py',
    '../_base_/default_runtime_cls.py',
]
