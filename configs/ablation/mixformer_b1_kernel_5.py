_base_ = './mixformer_b1_200e.py'

model = dict(backbone=dict(dwconv_kernel_size=5))
