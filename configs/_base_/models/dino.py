# mmdet's DINO with FocalNet-L, as detrex and FocalNet-DINO build it.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '../backbones/focalnet_l.py']
custom_imports = dict(imports=['focal_mm'], allow_failed_imports=False)

model = dict(
    type='FocalDINO',
    # Both codes pad the stem as the classifier does, and not as microsoft/FocalNet's detectors.
    backbone=dict(_delete_=True, **_base_.pop('backbone'), out_indices=(1, 2, 3), stem_padding=2),
    # mmdet leaves out the biases before a norm.
    neck=dict(in_channels=[384, 768, 1536], bias=True),
)
