"""Published checkpoints: finding, reading, renaming, fitting and loading them."""

from .files import trust
from .formats import convert, read_checkpoint, recognise
from .loading import CheckpointError
from .published import ZOO, Weights
from .zoo import fetch, find, verify
from .zoo import list_weights as list  # read where it is used: weights.list()

__all__ = [
    'ZOO',
    'CheckpointError',
    'Weights',
    'convert',
    'fetch',
    'find',
    'list',
    'read_checkpoint',
    'recognise',
    'trust',
    'verify',
]
