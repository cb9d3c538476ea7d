"""The drawn mini datasets, and configs that train on them."""

from .mini import from_scratch, use_mini
from .shapes import mini_ade20k, mini_coco, mini_imagenet

__all__ = ['from_scratch', 'mini_ade20k', 'mini_coco', 'mini_imagenet', 'use_mini']
