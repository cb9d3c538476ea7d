"""What mmpose asks of xtcocotools, whose wheels do not load beside numpy 2, on pycocotools.

:func:`install` offers this module under xtcocotools' name where that cannot be imported.
"""
import importlib
import sys
from importlib.util import find_spec
from typing import Any

__all__ = ['COCO', 'COCOeval', 'install']

# pycocotools is imported when mmpose asks for it: `import focal_mm` stays quick.


def __getattr__(name: str) -> Any:
    if name == 'COCO':
        return importlib.import_module('pycocotools.coco').COCO
    if name == 'COCOeval':
        return _evaluator()
    if name in ('encode', 'decode', 'area', 'toBbox', 'merge', 'iou', 'frPyObjects'):
        return getattr(importlib.import_module('pycocotools.mask'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _evaluator() -> type:
    from pycocotools.cocoeval import COCOeval

    class KeypointEval(COCOeval):
        """pycocotools' evaluation of keypoints by OKS, with the standard deviations as arguments.

        Args:
            sigmas (ndarray, optional): One per keypoint. Default: COCO's 17.
            use_area (bool): Objects' areas as annotated, all that pycocotools knows.

        Raises:
            NotImplementedError: For anything that needs xtcocotools itself.
        """

        def __init__(self, gt: Any = None, dt: Any = None, iou_type: str = 'keypoints',
                     sigmas: Any = None, use_area: bool = True) -> None:
            if iou_type != 'keypoints' or not use_area:
                raise NotImplementedError(f'{iou_type} with use_area={use_area} needs xtcocotools, '
                                          'in an environment with numpy 1')
            super().__init__(gt, dt, iou_type)
            if sigmas is not None:
                self.params.kpt_oks_sigmas = sigmas

    return KeypointEval


coco = cocoeval = mask = sys.modules[__name__]  # xtcocotools' modules, of which this is each


def install() -> bool:
    """Puts this module into ``sys.modules`` as xtcocotools, if that is not installed.

    Returns:
        bool: Whether xtcocotools is ours.
    """
    if find_spec('xtcocotools') is None:
        for part in ('', '.coco', '.cocoeval', '.mask'):
            sys.modules[f'xtcocotools{part}'] = sys.modules[__name__]
    return sys.modules.get('xtcocotools') is sys.modules[__name__]
