"""How large a pipeline makes its pictures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from ...config import type_name


@dataclass(frozen=True)
class Resizing:
    """The sizes that pictures may have in training.

    Attributes:
        choices (tuple): ``(width, height, keep_ratio)`` of each, in pixels; or ``(factor, None,
            True)``.
    """

    choices: tuple[tuple[float, float | None, bool], ...]

    def largest(self, sizes: np.ndarray) -> np.ndarray | None:
        """Return the factors that make pictures largest.

        Args:
            sizes (ndarray): Of shape (N, 2), width and height.

        Returns:
            ndarray or None: Of shape (N, 2); None if nothing is known.
        """
        found = None
        for width, height, keep_ratio in self.choices:
            scale = self._factors(sizes, width, height, keep_ratio)
            found = scale if found is None else np.fmax(found, scale)
        return found

    @staticmethod
    def _factors(
        sizes: np.ndarray, width: float, height: float | None, keep_ratio: bool
    ) -> np.ndarray:
        if height is None:
            return np.full(sizes.shape, width)
        if not keep_ratio:
            return np.array([width, height]) / sizes
        long, short = max(width, height), min(width, height)
        factor = np.fmin(long / sizes.max(1), short / sizes.min(1))
        return np.stack([factor, factor], 1)


def resizing_of(pipeline: Any) -> Resizing | None:
    """Return the sizes that a pipeline of mmdet makes; None if it changes none that is known."""
    try:
        choices = _choices(pipeline if isinstance(pipeline, (list, tuple)) else [])
    except (TypeError, ValueError):  # arguments that the transform will refuse
        return None
    return Resizing(tuple(choices)) if choices else None


def _choices(pipeline: Sequence[Any]) -> list[tuple[float, float | None, bool]]:
    found: list[tuple[float, float | None, bool]] = []
    for step in pipeline:
        if not isinstance(step, dict):
            continue
        name, scale = type_name(step), step.get('scale')
        keep = bool(step.get('keep_ratio'))
        if name == 'RandomChoice':
            inside = [one for branch in step.get('transforms') or () for one in _choices(branch)]
            found = inside or found
        elif name == 'RandomChoiceResize':
            found = [(*_pair(one), keep) for one in step.get('scales') or ()]
        elif name == 'RandomResize':
            scales = list(scale) if _is_list(scale) and _is_list(scale[0]) else [scale]
            _, most = step.get('ratio_range') or (1, 1)
            found = [
                (width * most, height * most, keep)
                for width, height in map(_pair, filter(None, scales))
            ]
        elif name in ('Resize', 'FixScaleResize') and scale:
            found = [(*_pair(scale), keep)]
        elif name in ('Resize', 'FixScaleResize') and isinstance(
            step.get('scale_factor'), (int, float)
        ):
            found = [(step['scale_factor'], None, True)]
        elif name == 'FixShapeResize' and 'width' in step and 'height' in step:
            found = [(step['width'], step['height'], keep)]
    return found


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _pair(scale: Any) -> Iterable[Any]:
    return scale[:2] if isinstance(scale, (list, tuple)) else (scale, scale)
