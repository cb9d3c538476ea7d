custom_imports = dict(imports=['project'], allow_failed_imports=False)

model = dict(type='BiFPN', backbone=dict(type='FocalNet'))
loader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='Numbers'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
train_dataloader = loader
val_dataloader = loader
val_evaluator = dict(type='MeanError')
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = {}
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=2),
    dict(type='ExponentialLR', gamma=0.9),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, save_best='error', rule='less'),
)
custom_hooks = [dict(type='EMAHook'), dict(type='Count')]
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
