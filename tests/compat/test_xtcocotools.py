import numpy as np
import pytest

from focal_mm.compat.xtcocotools import COCO, COCOeval
from focal_mm.datasets import mini_coco

pytestmark = pytest.mark.stock


def test_keypoints_are_evaluated_with_the_deviations_given():
    truth = COCO(mini_coco() / 'annotations/person_keypoints_val2017.json')
    found = [
        dict(
            image_id=a['image_id'],
            category_id=1,
            score=1.0,
            keypoints=[value + (i % 3 == 0) * 2 for i, value in enumerate(a['keypoints'])],
        )
        for a in truth.anns.values()
    ]
    figures = []
    for sigma in (0.5, 0.02):
        evaluation = COCOeval(truth, truth.loadRes(found), 'keypoints', np.full(4, sigma))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures.append(evaluation.stats[0])
    assert figures[0] > 0.99 and figures[1] < 0.9


def test_evaluation_that_needs_xtcocotools_says_so():
    with pytest.raises(NotImplementedError, match='keypoints_crowd.*needs xtcocotools'):
        COCOeval(iou_type='keypoints_crowd')
