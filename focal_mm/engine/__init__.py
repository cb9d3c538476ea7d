"""Runs that survive what happens to them: a runner and hooks for any config of OpenMMLab.

``runner_type = 'focal_mm.DurableRunner'`` in a config has all of it; see docs/runs.md.
"""

from .checkpoint_hook import DurableCheckpointHook
from .checkpoints import NoSpaceError, find_newest, write_whole
from .look_hook import LookHook
from .loss_hooks import MeanLossHook, NonFiniteError, NonFiniteHook, load_incident
from .report_hook import ReportHook
from .runner import DurableFlexibleRunner, DurableRunner
from .sharding import ShardedStrategy
from .stop_hook import StopHook

__all__ = [
    'DurableCheckpointHook',
    'DurableFlexibleRunner',
    'DurableRunner',
    'LookHook',
    'MeanLossHook',
    'NoSpaceError',
    'NonFiniteError',
    'NonFiniteHook',
    'ReportHook',
    'ShardedStrategy',
    'StopHook',
    'find_newest',
    'load_incident',
    'write_whole',
]
