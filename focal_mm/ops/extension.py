"""The stand-in for ``mmcv._ext``: every name that ``mmcv.ops`` asks for.

Names, argument names and output arguments are those of mmcv's C++ bindings. The ops of ``OPS``
work; every other name is a function that raises NotImplementedError when called, so that
``import mmcv.ops`` succeeds and only the use of a missing op fails.

This file is executed under the name ``mmcv._ext``.
"""
from importlib import import_module
from typing import Any, Callable, NoReturn

OPS = {
    'nms': ('nms', 'softnms'),
    'roi': ('roi_align_forward', 'roi_align_backward', 'roi_pool_forward', 'roi_pool_backward'),
    'focal_loss': ('sigmoid_focal_loss_forward', 'sigmoid_focal_loss_backward'),
    'deform_conv': ('deform_conv_forward', 'deform_conv_backward_input',
                    'deform_conv_backward_parameters', 'modulated_deform_conv_forward',
                    'modulated_deform_conv_backward'),
    'deform_attn': ('ms_deform_attn_forward', 'ms_deform_attn_backward'),
}


def get_compiler_version() -> str:
    """What ``collect_env`` prints for the compilers of mmcv's ops."""
    return 'none (focal_mm.ops)'


get_compiling_cuda_version = get_compiler_version


# Not imported up here: torchvision would double the time that `import focal_mm` takes.
def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    for module, names in OPS.items():
        if name in names:
            return getattr(import_module(f'focal_mm.ops.{module}'), name)

    def missing_op(*args, **kwargs) -> NoReturn:
        raise NotImplementedError(
            f'{name} is not among the ops that focal_mm provides; compile mmcv: MMCV_WITH_OPS=1 '
            'pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall '
            'onedl-mmcv (stock OpenMMLab: mmcv==2.1.0, after pip uninstall mmcv-lite)')

    return missing_op
