# MixFormer paper, section 4.4: the ablations are trained for 200 epochs.
_base_ = '../imagenet/mixformer_b1.py'

train_cfg = dict(max_epochs=200)
