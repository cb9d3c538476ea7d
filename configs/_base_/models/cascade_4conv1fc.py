# Swin's Cascade Mask R-CNN, which FocalNet's official config takes over: heads of four convolutions
# and one linear layer with SyncBN, boxes class by class, GIoU.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

box_head = dict(
    type='ConvFCBBoxHead',
    num_shared_convs=4,
    num_shared_fcs=1,
    in_channels=256,
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    reg_class_agnostic=False,
    reg_decoded_bbox=True,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)
model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[place, place, size, size],
                ),
                **box_head,
            )
            for place, size in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
        ]
    )
)
