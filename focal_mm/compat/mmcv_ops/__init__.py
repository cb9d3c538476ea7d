"""mmcv's compiled ops on torchvision and PyTorch: the stand-in for ``mmcv._ext``.

Names, argument names and output arguments are the ones of mmcv's C++ bindings. Each op that is
imported below works. Every other name is a function that raises NotImplementedError when called,
so that ``import mmcv.ops`` succeeds and only the use of a missing op fails.

Everything that mmdet, mmseg, mmpretrain and mmpose use, in code or in configs, is here. Missing are
the ops of other packages: rotated boxes and quadrilaterals, point clouds and sparse convolutions,
text detection, and generative models; also the softmax focal loss.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from .carafe import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward
from .deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .line_nms import line_nms_forward
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .nms import nms, nms_match, softnms
from .psamask import psamask_backward, psamask_forward
from .roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

__all__ = [
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'deform_roi_pool_backward',
    'deform_roi_pool_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'line_nms_forward',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softnms',
    'sync_bn_backward_data',
    'sync_bn_backward_param',
    'sync_bn_forward_mean',
    'sync_bn_forward_output',
    'sync_bn_forward_var',
]


def get_compiler_version() -> str:
    """Return the text that mmcv's ``collect_env`` prints for the compiler of its ops."""
    return 'none (focal_mm.compat.mmcv_ops)'


get_compiling_cuda_version = get_compiler_version


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing_op(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'{name} is not among the ops that focal_mm provides; compile mmcv: MMCV_WITH_OPS=1 '
            'pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
            'onedl-mmcv (stock OpenMMLab: mmcv==2.1.0, after pip uninstall mmcv-lite)'
        )

    return missing_op
