_base_ = './mixformer_b1.py'

model = dict(backbone=dict(arch='b4'), head=dict(in_channels=512))
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05))
param_scheduler = _base_.param_scheduler
param_scheduler[0]['start_factor'] = 1e-4
