"""Corrections of mmcv's own modules, compiled or not."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.utils import _pair


def start_sync_bn_as_batch_norm(module: ModuleType) -> None:
    """Make mmcv's SyncBatchNorm start as a BatchNorm does, and be PyTorch's in a single process.

    Without a process group its constructor ends in "Default process group has not been
    initialized", before mmengine's runner can replace it by a BatchNorm. With one, it draws its
    weights from [0, 1), so that a network to which mmengine's ``sync_bn='mmcv'`` is applied would
    be initialized with other random numbers in two processes than in one.

    Args:
        module (ModuleType): ``mmcv.ops.sync_bn``.
    """

    def new(
        cls: type,
        num_features: int = 0,  # none for a copy
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        group: Any = None,
        stats_mode: str = 'default',
    ) -> nn.Module:
        if dist.is_initialized():
            return object.__new__(cls)
        return nn.SyncBatchNorm(num_features, eps, momentum, affine, track_running_stats)

    def reset_parameters(self: Any) -> None:
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    module.SyncBatchNorm.__new__ = new
    module.SyncBatchNorm.reset_parameters = reset_parameters


def export_roi_align(module: ModuleType) -> None:
    """Make ``torch.onnx.export(dynamo=False)`` write a valid RoiAlign for every opset.

    mmcv writes a Squeeze that is invalid from opset 13 on, and a RoiAlign that from opset 16 on is
    shifted by half a pixel twice.

    Args:
        module (ModuleType): ``mmcv.ops.roi_align``.
    """

    def symbolic(
        g: Any,
        input: Any,
        rois: Any,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        pool_mode: str,
        aligned: bool,
    ) -> Any:
        if pool_mode != 'avg':
            raise NotImplementedError(
                f'roi_align: pool_mode={pool_mode!r} cannot be exported, as the maximum of ONNX is '
                "another; use pool_mode='avg'"
            )

        def columns(index: Any) -> Any:
            return g.op('Gather', rois, g.op('Constant', value_t=torch.tensor(index)), axis_i=1)

        boxes, mode = columns([1, 2, 3, 4]), {}
        if g.opset >= 16:
            by_corner = 'half_pixel' if aligned else 'output_half_pixel'
            mode = dict(coordinate_transformation_mode_s=by_corner)
        elif aligned:
            half_pixel = torch.tensor(0.5 / spatial_scale)
            boxes = g.op('Sub', boxes, g.op('Constant', value_t=half_pixel))
        height, width = _pair(output_size)
        return g.op(
            'RoiAlign',
            input,
            boxes,
            g.op('Cast', columns(0), to_i=torch.onnx.TensorProtoDataType.INT64),
            output_height_i=height,
            output_width_i=width,
            spatial_scale_f=spatial_scale,
            sampling_ratio_i=max(0, sampling_ratio),
            mode_s='avg',
            **mode,
        )

    module.RoIAlignFunction.symbolic = staticmethod(symbolic)


CORRECTIONS: dict[str, Callable[[ModuleType], None]] = {
    'mmcv.ops.roi_align': export_roi_align,
    'mmcv.ops.sync_bn': start_sync_bn_as_batch_norm,
}
