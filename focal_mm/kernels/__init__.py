"""Fast kernels, each one public function with its plain PyTorch twin beside it.

:mod:`.dispatch` alone decides which of the two runs, and :func:`use` chooses for a person.
"""

from .dispatch import MODES, use

__all__ = ['MODES', 'use']
