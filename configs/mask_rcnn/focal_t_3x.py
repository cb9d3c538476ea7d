# The crop branch is not in the paper. Its authors say that they follow Swin's code, which has it.
# The drop path is the paper's, 0.2, 0.3 and 0.5 (section 4.2), where Swin has 0.2 for T and S.
_base_ = [
    '../_base_/models/mask_rcnn_focal_transformer.py',
    '../_base_/datasets/coco_instance_ms.py',
    '../_base_/schedules/adamw_3x.py',
    '../_base_/default_runtime.py',
]
