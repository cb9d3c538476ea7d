# Fine-tuning of the Objects365 detector on COCO: FocalNet-DINO's
# focalnet_large_fl4_o365_finetuned_on_coco. Epochs and image sizes, 1.5 times the usual ones, are
# those of the DINO paper, since FocalNet-DINO does not give its own.
_base_ = '../_base_/models/dino_5scale.py'

load_from = 'focal://dino_focalnet_large_fl4_5scale_o365'
model = dict(
    # FocalNet-DINO divides the gathered context. The weights are those of load_from.
    backbone=dict(normalize_modulator=True, init_cfg=None),
    dn_cfg=dict(box_noise_scale=0.4),
)

scales = [(side, 2000) for side in range(720, 1201, 48)]
train_pipeline = _base_.train_pipeline
resize, crop = train_pipeline[3].transforms
resize[0].scales = crop[2].scales = scales
crop[0].scales = [(600, 6300), (750, 6300), (900, 6300)]
crop[1].crop_size = (576, 900)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2000, 1200)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 18
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[16], gamma=0.1)
]
