"""Operators that ONNX lacks, under their public name; see docs/export.md."""

from .kernels.adaptive_pool import adaptive_avg_pool2d

__all__ = ['adaptive_avg_pool2d']
