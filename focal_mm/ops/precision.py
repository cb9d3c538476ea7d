"""The precision that the ops compute in."""
from torch import Tensor, bfloat16, float16


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Cast float16 and bfloat16 to float32, as torchvision's ops do under autocast.

    Not all of torchvision's kernels know the half precisions, and coordinates need more than
    their bits. float64 stays.
    """
    return [t.float() if t.dtype in (float16, bfloat16) else t for t in tensors]
