_base_ = './focalnet_l_fl4_o365_coco.py'

# Its authors never published the detector of Objects365.
load_from = 'work_dirs/focalnet_xl_fl4_o365/epoch_26.pth'
model = dict(
    backbone=dict(arch='xlarge_fl4', normalize_modulator=True),  # as in focalnet_xl_fl4_o365.py
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
