_base_ = [
    '../_base_/models/mask_rcnn_focalnet.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/default_runtime.py',
]

# FocalNet's official 1x files decay at 9 and 11, where Swin's decay at 8 and 11.
param_scheduler = _base_.param_scheduler
param_scheduler[1]['milestones'] = [9, 11]
