# MixFormer paper, Table 11, whose appendix holds the recipe: top-down as mmpose's Swin-T, with the
# stochastic depth of the arch and norm statistics as in detection.
_base_ = [
    'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_swin-t-p4-w7_8xb32-210e_coco-256x192.py',
    '../_base_/backbones/mixformer_b4.py',
]
custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(_delete_=True, out_indices=(3,), **_base_.pop('backbone')),
    head=dict(in_channels=512),
)
