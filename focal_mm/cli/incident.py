"""What a run saved when a value was not finite, as lines for a reader."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def summarize(incident: dict[str, Any], modules: int = 10) -> dict[str, Any]:
    """Return the parts of an incident that are worth a look.

    Args:
        incident (dict): What :func:`focal_mm.engine.load_incident` returns.
        modules (int): Number of modules that are kept before the first one whose output is not
            finite; two after it are kept, too. Default: 10.

    Returns:
        dict: ``iter``, ``epoch``, ``seed``, ``cause`` and ``module`` as they are; ``losses``,
        ``gradients`` and ``weights``: those that are not finite; ``modules``: name and largest
        magnitude; ``batch``: for each tensor its place, its shape, its smallest and largest finite
        value and the number of others, and for each picture its path.
    """
    peaks = incident['modules']
    first = next(
        (i for i, (_, peak) in enumerate(peaks) if not math.isfinite(peak)), len(peaks) - 1
    )
    return dict(
        {name: incident[name] for name in ('iter', 'epoch', 'seed', 'cause', 'module')},
        losses=[f'{k} {v}' for k, v in incident['losses'].items() if not math.isfinite(v)],
        gradients=incident['gradients'],
        weights=[
            name
            for name, value in incident['state_dict'].items()
            if value.is_floating_point() and not value.isfinite().all()
        ],
        modules=[(n, f'{v:.4g}') for n, v in peaks[max(first - modules, 0) : first + 3]],
        batch=list(_rows('', incident['batch'])),
    )


def _rows(name: str, value: Any) -> Iterator[tuple[str, str, str, str, int]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _rows(f'{name}.{key}' if name else str(key), child)
    elif isinstance(value, list) and any(isinstance(v, (dict, list, Tensor)) for v in value):
        for number, child in enumerate(value):
            yield from _rows(f'{name}.{number}', child)
    elif isinstance(value, np.ndarray):
        yield from _rows(name, torch.from_numpy(value))
    elif isinstance(value, Tensor):
        finite = (value.abs() if value.is_complex() else value)[value.isfinite()]
        low, high = (f'{v:.4g}' for v in (finite.min(), finite.max())) if len(finite) else ('', '')
        shape = 'x'.join(map(str, value.shape))
        yield name, shape, low, high, int((~value.isfinite()).sum())
    elif name.endswith('_path') and value:
        yield name, str(value), '', '', 0
