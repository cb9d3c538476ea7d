# As in PaddleClas, with a longer warm-up than B4.
_base_ = './mixformer_b4.py'

model = dict(backbone=dict(arch='b5'), head=dict(in_channels=768))
param_scheduler = _base_.param_scheduler
param_scheduler[0]['end'] = 40
param_scheduler[1]['begin'] = 40
