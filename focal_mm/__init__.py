"""The focal family of backbones for mmdet 3, mmseg 1 and mmpretrain 1.

``import focal_mm``, or ``custom_imports = dict(imports=['focal_mm'])`` in a config, registers
everything. The order below is meant: mmcv's ops must be there before anything imports mmdet's
models, and whatever needs the stack comes after the check that there is one.
"""
from . import stack

stack.check()

from . import keypoints, ops, panoptic  # noqa: E402

ops.install()
panoptic.install()
keypoints.install()
stack.register_configs()

from . import backbones, weights  # noqa: E402

weights.register()
stack.register_on_demand('focal_mm.classifier', 'TokenClsHead')
stack.register_on_demand('focal_mm.reppoints_v2', 'BiFPN', 'RepPointsV2Head', 'SeparateFocalLoss')

__version__ = '0.1.0'
__all__ = ['backbones', 'ops', 'weights']
