_base_ = './mixformer_b1.py'

backbone = dict(arch='b4', init_cfg=dict(checkpoint='focal://mixformer_b4_in1k'))
