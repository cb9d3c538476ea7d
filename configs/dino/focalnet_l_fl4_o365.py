# Objects365 pre-training of FocalNet-DINO's focalnet_large_fl4_pretrained_on_o365. Epochs and batch
# are those of the DINO paper, since FocalNet-DINO does not give its own.
_base_ = '../_base_/models/dino_5scale.py'

model = dict(
    # FocalNet-DINO divides the gathered context, as the ImageNet-22K weights did.
    backbone=dict(normalize_modulator=True),
    bbox_head=dict(num_classes=365),
    dn_cfg=dict(box_noise_scale=0.4),
)

data_root = 'data/Objects365/Obj365_v2/'
objects365 = dict(type='Objects365V2Dataset', data_root=data_root)
val_file = 'annotations/zhiyuan_objv2_val.json'
train_dataloader = dict(
    dataset=dict(
        **objects365,
        ann_file='annotations/zhiyuan_objv2_train.json',
        data_prefix=dict(img='train/'),
    )
)
val_dataloader = dict(dataset=dict(**objects365, ann_file=val_file, data_prefix=dict(img='val/')))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_file)
test_evaluator = val_evaluator

max_epochs = 26
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[24], gamma=0.1)
]
auto_scale_lr = dict(base_batch_size=64)
