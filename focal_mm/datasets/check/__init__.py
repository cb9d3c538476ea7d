"""Faults of a dataset, found before a night is spent on it.

A run stops at none of these, or stops hours later: mmdet drops boxes that it cannot use and
annotations of unknown categories, and a picture is opened when its turn comes. Each layout has a
module of its own; files from strangers are read without running code, and without decoding what
would not fit into memory.
"""

from .annotations import Rules
from .coco import CocoFile
from .config import check_config
from .folders import ClassFolder, LabelList
from .label_maps import LabelMaps, count_labels
from .overlap import check_overlap
from .panoptic import PanopticFile
from .pictures import PICTURES, Reading, open_picture, oriented_size
from .report import Copy, Finding, Report, printable
from .voc import VocFiles

__all__ = [
    'PICTURES',
    'ClassFolder',
    'CocoFile',
    'Copy',
    'Finding',
    'LabelList',
    'LabelMaps',
    'PanopticFile',
    'Reading',
    'Report',
    'Rules',
    'VocFiles',
    'check_config',
    'check_overlap',
    'count_labels',
    'open_picture',
    'oriented_size',
    'printable',
]
