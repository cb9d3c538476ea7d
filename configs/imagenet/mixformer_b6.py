_base_ = './mixformer_b5.py'

model = dict(backbone=dict(arch='b6'))
