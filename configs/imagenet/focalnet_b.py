_base_ = './focalnet_t.py'

model = dict(backbone=dict(arch='base_lrf', drop_path_rate=0.5), head=dict(in_channels=1024))
