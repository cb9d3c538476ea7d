# The test crop is 7/8 of the image, as in FocalNet's code. Swin's files for 384 pixels resize the
# whole image instead (TEST.CROP: False); FocalNet published none.
_base_ = './focalnet_b_22k.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = 438
test_pipeline[2]['crop_size'] = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
