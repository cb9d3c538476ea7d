# LVIS v1 as in mmdet's configs, whose ResNet-50 is the one that the paper compares with (21.7 mask
# AP, Table 11); the optimizer is that of COCO, and the steps, 8 and 11, are those of both. The
# paper leaves them to its appendix.
_base_ = [
    '../_base_/models/mask_rcnn_mixformer.py',
    'mmdet::_base_/datasets/lvis_v1_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='b4', init_cfg=dict(checkpoint='focal://mixformer_b4_in1k')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(bbox_head=dict(num_classes=1203), mask_head=dict(num_classes=1203)),
    test_cfg=dict(rcnn=dict(score_thr=0.0001, max_per_img=300)),
)
