# Focal Transformer paper, section 4.3: as the smaller ones, at 640x640. Focal-L has 192 channels
# here, in detection 196. With 196 this segmentor would have 246.6 M parameters; Table 6 has 240 M.
_base_ = [
    '../_base_/models/upernet_focal_transformer.py',
    'mmseg::_base_/datasets/ade20k_640x640.py',
    '../_base_/schedules/adamw_160k.py',
    '../_base_/default_runtime_seg.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(arch='large', init_cfg=dict(checkpoint='focal://focal_large_in22k')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=2)
