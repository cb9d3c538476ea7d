"""Transforms for mmdet's pipelines: ``type='focal_mm.NAME'`` in a config.

mmdet is slow to import and may be missing, so it is imported when a transform is built.
"""

from typing import Any

from ..registry import TRANSFORMS


@TRANSFORMS.register_module('LoadAnnotations')
def load_annotations(*args: Any, **kwargs: Any) -> Any:
    """Return a :class:`focal_mm.datasets.cropped_masks.LoadAnnotations`."""
    from .cropped_masks import LoadAnnotations

    return LoadAnnotations(*args, **kwargs)
