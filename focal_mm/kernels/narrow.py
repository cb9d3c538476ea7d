"""Convolution whose result is one column of pixels."""

from typing import Any

from torch import Tensor, nn

from .depthwise import in_single_precision, is_half
from .dispatch import fused_module, is_compiled, is_graph


@fused_module
class NarrowConv2d(nn.Conv2d):
    """``nn.Conv2d`` that takes single precision where half precision would be wrong, see
    :func:`is_wrong`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__module__ = nn.Conv2d.__module__  # torch.fx takes it whole, as any convolution

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = super()._conv_forward
        padding = 0 if isinstance(self.padding, str) else self.padding[1]  # a text: stride 1
        sizes = self.kernel_size[1], self.stride[1], padding, self.dilation[1]
        if (not is_graph() or is_compiled()) and is_wrong(x, *sizes):
            return in_single_precision(convolve, x, weight, bias)
        return convolve(x, weight, bias)


def is_wrong(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Return whether a convolution in half precision may be wrong, which has these sizes along a
    row.

    On a CPU in bfloat16, oneDNN (torch 2.11) leaves parts of a result of one column as they were in
    memory if the stride is above 1: the map on processors with AMX, the gradient of the weight, for
    a kernel that reaches beyond both edges, on any processor.
    """
    reach = dilation * (kernel - 1) + 1
    return is_half(x) and stride > 1 and x.shape[-1] + 2 * padding - reach < stride
