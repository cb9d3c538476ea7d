"""FocalNet, Focal Transformer and MixFormer as backbones for mmdet 3, mmseg 1 and mmpretrain 1.

``import focal_mm``, or ``custom_imports = dict(imports=['focal_mm'])`` in a config, changes the
following in the process, and nothing else (docs/import.md says what each is for):

Names in configs
    The backbones ``FocalNet``, ``FocalTransformer``, ``MixFormer``, ``MixingResNet`` and
    ``MixingMobileNetV2`` are in mmengine's root registry ``MODELS``, whose table is replaced by one
    that imports them when they are read. A class that a project
    registers under one of these names has the name instead; ``Registry._register_module`` is
    wrapped to see to that, and warns. A child registry of scope ``focal_mm`` has the backbones and
    the classes of :mod:`focal_mm.heads`: ``focal_mm.FocalNet``, ``focal_mm.TokenClsHead``,
    ``focal_mm.FocalDINO``, ``focal_mm.BiFPN``, ``focal_mm.RepPointsV2Head``,
    ``focal_mm.SeparateFocalLoss``. Such registries of runners, hooks and transforms have what makes
    runs survive interruptions (:mod:`focal_mm.engine`), imported where a config names it:
    ``focal_mm.DurableRunner``, ``focal_mm.DurableCheckpointHook``, ``focal_mm.MeanLossHook``,
    ``focal_mm.NonFiniteHook``, ``focal_mm.StopHook``, ``focal_mm.SkipCorrupt``,
    ``focal_mm.DurableFlexibleRunner``, ``focal_mm.ShardedStrategy``; ``focal_mm.ReportHook``, which
    writes the report of a run; and ``focal_mm.LookHook``, which shows what the network sees. That
    of transforms also has ``focal_mm.LoadAnnotations`` (:mod:`focal_mm.datasets.cropped_masks`),
    and those of data sets and samplers have ``focal_mm.ShardedImages`` and
    ``focal_mm.ShardBatchSampler`` (:mod:`focal_mm.datasets.shards`).

Missing packages
    Where mmcv has no compiled ops, ``mmcv._ext`` is :mod:`focal_mm.compat.mmcv_ops`. Where they are
    not installed, ``panopticapi`` (with ``utils`` and ``evaluation``) and ``xtcocotools`` (with
    ``coco``, ``cocoeval`` and ``mask``) are the modules of these names in :mod:`focal_mm.compat`.
    Modules that were imported before, and went on without one of these, import it again.

Checkpoints
    mmengine's ``CheckpointLoader`` takes ``focal://`` names, and reads files, addresses
    (``http://``, ``https://``, ``s3://``, ``petrel://``) and what ``openmmlab://`` names stand for
    without running code that they contain: a file that names anything but plain data is refused,
    unless ``FOCAL_MM_TRUST`` names it (:func:`focal_mm.weights.trust`). Weights that are NaN are
    refused, too. mmengine's ``checkpoint.load_from_http`` and, where it is there,
    ``checkpoint._safe_torch_load`` are replaced.

Files
    mmengine's tables ``backends`` and ``prefix_to_backends`` have the file backend ``fsspec``,
    which is :class:`focal_mm.storage.FsspecBackend` and reads addresses of ``gs://``, ``gcs://``,
    ``az://`` and ``abfs://``, and of ``s3://`` where ``petrel_client``, to which mmengine gives
    them, is not installed.

Names of configs
    mmengine's ``Config.fromfile``, ``Config._get_cfg_path`` (for ``_base_``) and ``hub.get_config``
    are wrapped to take ``focal_mm::PATH``; ``Config.fromfile`` also takes ``mmdet::PATH`` and the
    like. mmengine's table ``MODULE2PACKAGE``, also called ``PKG2PROJECT``, has the entries
    ``focal_mm`` and, where it is installed, ``mmseg``.

mmengine, mmcv, mmpretrain, mmdet, mmseg
    mmengine's ``turn_on_activation_checkpointing`` and ``turn_on_efficient_conv_bn_eval`` are
    wrapped to work for parts of our backbones. mmpretrain's ``list_models``, ``get_model`` and
    ``inference_model`` know our classifiers by name, and ``LearningRateDecayOptimizerConstructor``
    of mmdet and mmseg takes our backbones. mmcv's SyncBatchNorm, ``MMSyncBN`` in configs, can be
    built without a process group, where it is PyTorch's, and has weights of 1 at the start instead
    of random ones; mmcv's ``roi_align`` can be exported to ONNX of opset 13 and later. An entry in
    ``sys.meta_path`` waits for the modules that are not imported yet.

PyTorch
    There are operators for the graphs that torch.compile makes for a CPU:
    ``torch.ops.focal_mm.linear``, ``torch.ops.focal_mm.linear_input_gradient``,
    ``torch.ops.focal_mm.linear_weight_gradient``, ``torch.ops.focal_mm.mlp``,
    ``torch.ops.focal_mm.mlp_gradients``, ``torch.ops.focal_mm.depthwise_weight_gradient``,
    ``torch.ops.focal_mm.gated_context``, ``torch.ops.focal_mm.gated_context_gradients``,
    ``torch.ops.focal_mm.window_attention``, ``torch.ops.focal_mm.window_attention_gradients``,
    ``torch.ops.focal_mm.pad_by_token``, ``torch.ops.focal_mm.convolution``,
    ``torch.ops.focal_mm.convolution_gradients``, ``torch.ops.focal_mm.roll`` and
    ``torch.ops.focal_mm.relative_index``.

mmcv, mmdet, mmseg, mmpretrain and torchvision are not imported, unless a module was imported before
and went on without the ops. The backbones are imported where they are built or asked for.
"""

import sys
from multiprocessing import parent_process
from pathlib import Path
from typing import Any


def set_up() -> None:
    """Make the changes above; calling again changes nothing."""
    from .compat import install
    from .compat.versions import require_stack

    # mmcv's ops must be there before mmdet's models.
    require_stack()
    install()

    from . import additions, config, registry, storage
    from .kernels import depthwise  # noqa: F401  registers the operator

    registry.register_in_root(*registry.BACKBONES)
    config.register_configs()
    additions.register()
    storage.register()


def __getattr__(name: str) -> Any:
    if name in ('backbones', 'heads', 'look', 'weights'):
        # mmengine's models and runners, and matplotlib for `look`, take most of a second.
        from importlib import import_module

        return import_module(f'.{name}', __name__)
    if name == 'use_backbone':
        from .transplant import use_backbone

        return use_backbone
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


# The command sets up once it has read its command line: torch and OpenMMLab take seconds to import.
_name = sys.argv[0] if sys.argv else ''
_is_command = Path(_name).stem == 'focal-mm' or (_name == '-m' and 'focal_mm' in sys.orig_argv)
if not _is_command or parent_process():
    set_up()

__version__ = '0.1.0'
__all__ = ['backbones', 'config', 'heads', 'kernels', 'look', 'set_up', 'use_backbone', 'weights']
