"""The parts of xtcocotools that mmpose uses, on pycocotools."""

from typing import Any

from pycocotools import cocoeval
from pycocotools.coco import COCO
from pycocotools.mask import area, decode, encode, frPyObjects, iou, merge, toBbox

__all__ = ['COCO', 'COCOeval', 'area', 'decode', 'encode', 'frPyObjects', 'iou', 'merge', 'toBbox']


class COCOeval(cocoeval.COCOeval):
    """Evaluation of keypoints by OKS, with the standard deviations as an argument.

    Args:
        gt (COCO, optional): Annotations.
        dt (COCO, optional): Predictions.
        iou_type (str): ``'keypoints'``, the only type that is supported here.
        sigmas (ndarray, optional): Standard deviation of each keypoint. Default: COCO's 17.
        use_area (bool): Take the objects' areas from the annotations. pycocotools has no
            alternative, so False is an error. Default: True.

    Raises:
        NotImplementedError: If another type or ``use_area=False`` is asked for.
    """

    def __init__(
        self,
        gt: COCO | None = None,
        dt: COCO | None = None,
        iou_type: str = 'keypoints',
        sigmas: Any = None,
        use_area: bool = True,
    ) -> None:
        if iou_type != 'keypoints' or not use_area:
            raise NotImplementedError(
                f'{iou_type} with use_area={use_area} needs xtcocotools, '
                'in an environment with numpy 1'
            )
        super().__init__(gt, dt, 'keypoints')
        if sigmas is not None:
            self.params.kpt_oks_sigmas = sigmas
