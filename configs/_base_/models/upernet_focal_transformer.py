# Focal Transformer paper, section 4.3; focal windows as in detection. The paper counts 62, 85 and
# 126 M parameters; these have 60.6, 82.8 and 123.4 M (with overlapped patches 62.5, 84.8, 126.8 M).
_base_ = 'mmseg::_base_/models/upernet_r50.py'

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type='FocalTransformer',
        arch='tiny',
        focal_windows=(15, 13, 9, 7),
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='focal://focal_tiny_in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150))
