"""Backbones, registered as ``NAME`` in mmengine's root registry and as ``focal_mm.NAME``."""

from .focal_transformer import FocalTransformer
from .focalnet import FocalNet
from .mixformer import MixFormer
from .mixing_convnets import MixingMobileNetV2, MixingResNet

__all__ = [
    'FocalNet',
    'FocalTransformer',
    'MixFormer',
    'MixingMobileNetV2',
    'MixingResNet',
]
