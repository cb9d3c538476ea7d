"""Precision in which the ops compute."""

from torch import Tensor, bfloat16, float16


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Cast float16 and bfloat16 to float32, as torchvision's ops do under autocast.

    Some of torchvision's kernels do not support half precision, and it is too coarse for
    coordinates. Other types, such as float64, are not changed.
    """
    return [t.float() if t.dtype in (float16, bfloat16) else t for t in tensors]
