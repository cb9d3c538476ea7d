_base_ = './focalnet_l_fl4_o365_coco.py'

# Its authors never published the detector of Objects365.
load_from = 'work_dirs/focalnet_h_fl4_o365/epoch_26.pth'
model = dict(
    backbone=dict(arch='huge_fl4', normalize_modulator=False),  # as in focalnet_h_fl4_o365.py
    neck=dict(in_channels=[352, 704, 1408, 2816]),
)
