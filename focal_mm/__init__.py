"""FocalNet, Focal Transformer and MixFormer as backbones for mmdet 3, mmseg 1 and mmpretrain 1.

``import focal_mm``, or ``custom_imports = dict(imports=['focal_mm'])`` in a config, changes the
following in the process:

- mmengine's registry ``MODELS`` builds the backbones ``FocalNet``, ``FocalTransformer``,
  ``MixFormer``, ``MixingResNet`` and ``MixingMobileNetV2`` from every scope, and the classes of
  :mod:`focal_mm.heads`: ``TokenClsHead``, ``BiFPN``, ``RepPointsV2Head``, ``SeparateFocalLoss``.
- Where mmcv has no compiled ops, ``mmcv._ext`` is :mod:`focal_mm.compat.mmcv_ops`.
- Where they are not installed, ``panopticapi`` and ``xtcocotools`` are the modules of these names
  in :mod:`focal_mm.compat`.
- mmengine's ``CheckpointLoader`` takes ``focal://NAME``, and reads files and addresses without
  running code that they contain.
- mmengine's ``Config.fromfile``, ``_base_`` and ``hub.get_config`` take ``focal_mm::PATH``, and
  ``Config.fromfile`` also ``mmdet::PATH`` and the like.

mmdet, mmseg, mmpretrain, mmcv.ops and torchvision are not imported.
"""

from . import compat
from .compat import versions

# The rest imports mmengine and mmcv, and mmcv's ops must be there before mmdet's models.
versions.require_stack()
compat.install()

from . import backbones, config, heads, kernels, registry, weights  # noqa: E402

registry.register_in_root(*(getattr(backbones, name) for name in backbones.__all__))
config.register_configs()
weights.register()

__version__ = '0.1.0'
__all__ = ['backbones', 'config', 'heads', 'kernels', 'weights']
