"""The drawn mini datasets, parts of COCO and ADE20K, and configs that train on them."""

from .mini import from_scratch, use_mini
from .objects import drawn_objects
from .shapes import mini_ade20k, mini_coco, mini_imagenet
from .subsets import PARTS, command_for, use_part, write_ade20k_part, write_coco_part

__all__ = [
    'PARTS',
    'command_for',
    'drawn_objects',
    'from_scratch',
    'mini_ade20k',
    'mini_coco',
    'mini_imagenet',
    'use_mini',
    'use_part',
    'write_ade20k_part',
    'write_coco_part',
]
