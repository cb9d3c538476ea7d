# Focal Transformer paper, section 4.3; the focal windows are those of detection. The drop path is
# 0.3 for all sizes, as in Swin's segmentation code, which the authors say they follow; the paper's
# 0.2, 0.3 and 0.5 are said of detection. The paper counts
# 62, 85 and 126 M parameters; these models have 60.9, 83.1 and 123.8 M (62.8, 85.1 and 127.2 M with
# overlapped patches).
_base_ = ['mmseg::_base_/models/upernet_r50.py', '../backbones/focal_t.py']

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_base_.pop('backbone'), _delete_=True, drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
)
