"""Convolution of maps that are narrower than its kernel."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import autocast_dtype, is_graph


class NarrowConv2d(nn.Conv2d):
    """``nn.Conv2d`` that pads maps by itself where PyTorch would return a wrong gradient.

    On a CPU with bfloat16, oneDNN (torch 2.11) leaves parts of the weight's gradient as they were
    in memory if the stride is above 1 and the kernel reaches beyond both edges of the map at once:
    3x3 with stride 2 on a map of width 1. In float32 it is right, and stays as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__module__ = nn.Conv2d.__module__  # torch.fx takes it whole, as any convolution

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if is_graph() or autocast_dtype(x) in (torch.float, torch.double) or not self._overlooks(x):
            return super().forward(x)
        height, width = cast(tuple[int, int], self.padding)  # no text: see _overlooks
        x = F.pad(x, (width, width, height, height))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _overlooks(self, x: Tensor) -> bool:
        """Return whether the kernel reaches beyond the right edge from the left padding."""
        reach = self.dilation[1] * (self.kernel_size[1] - 1) + 1
        return (
            self.padding_mode == 'zeros'
            and not isinstance(self.padding, str)
            and x.shape[-1] + self.padding[1] < reach
        )
