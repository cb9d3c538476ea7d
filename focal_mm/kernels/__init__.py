"""Fast kernels, each a public function with its plain PyTorch twin beside it.

:mod:`.dispatch` decides which of the two runs; :func:`use` lets a user choose.
"""

from .dispatch import MODES, use

__all__ = ['MODES', 'use']
