# The published weights have 21,842 classes; stochastic depth as in the official config. As in the
# official code, the test crop is 7/8 of the image.
_base_ = './focalnet_b_srf_in22k.py'

model = dict(
    backbone=dict(arch='large_fl3', drop_path_rate=0.5),
    head=dict(num_classes=21842, in_channels=1536),
)
data_preprocessor = dict(num_classes=21842)
train_pipeline = _base_.train_pipeline
train_pipeline[1]['scale'] = 384
test_pipeline = _base_.test_pipeline
test_pipeline[1]['scale'] = 438
test_pipeline[2]['crop_size'] = 384
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
