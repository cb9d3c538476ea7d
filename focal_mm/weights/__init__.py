"""From any published checkpoint to a state dict that fits."""
from .formats import convert, read_checkpoint, recognise
from .resize import CheckpointError
from .zoo import ZOO, Weights, fetch, find, register, verify
from .zoo import list_weights as list  # read where it is used: weights.list()

__all__ = ['CheckpointError', 'Weights', 'ZOO', 'convert', 'fetch', 'find', 'list',
           'read_checkpoint', 'recognise', 'register', 'verify']
