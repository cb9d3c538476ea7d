"""From any published checkpoint to a state dict that fits."""
from .formats import read_checkpoint
from .resize import CheckpointError
from .zoo import ZOO, fetch, register

__all__ = ['CheckpointError', 'ZOO', 'fetch', 'read_checkpoint', 'register']
