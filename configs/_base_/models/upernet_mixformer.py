# MixFormer paper, section 4.3; norm_eval as in detection, because batches are as small. The drop
# path is the arch's, as in detection, 0 to 0.2: smaller models need less, says section 4.1. Swin,
# which the paper mainly follows, has 0.3 for all.
_base_ = ['mmseg::_base_/models/upernet_r50.py', '../backbones/mixformer_b1.py']

model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, **_base_.pop('backbone')),
    decode_head=dict(in_channels=[32, 64, 128, 256], num_classes=150),
    auxiliary_head=dict(in_channels=128, num_classes=150),
)
