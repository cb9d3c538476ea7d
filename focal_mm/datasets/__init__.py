"""Drawn mini datasets, parts of COCO and ADE20K, and checks of one's own data."""

from .check import check_config
from .classes import require_classes
from .mini import from_scratch, use_mini
from .objects import drawn_objects
from .shapes import mini_ade20k, mini_coco, mini_imagenet
from .subsets import PARTS, command_for, use_part, write_ade20k_part, write_coco_part

__all__ = [
    'PARTS',
    'check_config',
    'command_for',
    'drawn_objects',
    'from_scratch',
    'mini_ade20k',
    'mini_coco',
    'mini_imagenet',
    'require_classes',
    'use_mini',
    'use_part',
    'write_ade20k_part',
    'write_coco_part',
]
