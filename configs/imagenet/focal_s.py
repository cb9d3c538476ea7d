_base_ = './focal_t.py'

# Drop path of the authors' yaml, from which the published weights come; the paper's section 4.1
# says 0.2.
model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
