import numpy as np
import pytest
from PIL import Image

from focal_mm.compat.panopticapi import PQStat, id2rgb, rgb2id

pytestmark = pytest.mark.stock
CATEGORIES = {1: dict(isthing=1), 2: dict(isthing=1), 7: dict(isthing=0)}


def test_ids_and_colours_stand_for_each_other():
    ids = np.array([[0, 1, 255], [256, 65536, 256**3 - 1]])
    assert id2rgb(ids)[1].tolist() == [[0, 1, 0], [0, 0, 1], [255, 255, 255]]
    assert np.array_equal(rgb2id(id2rgb(ids)), ids)


def test_quality_follows_the_definition():
    stat = PQStat()
    stat[1].tp, stat[1].iou, stat[1].fp, stat[1].fn = 2, 1.5, 1, 1
    means, own = stat.pq_average(CATEGORIES, isthing=None)
    assert own[1] == dict(pq=pytest.approx(1.5 / 3), sq=0.75, rq=pytest.approx(2 / 3))
    assert means == dict(own[1], n=1)  # the classes without segments do not count


def test_a_class_of_misses_alone_counts_as_zero():
    stat = PQStat()
    stat[1].tp, stat[1].iou, stat[2].fn = 1, 1.0, 3
    assert stat.pq_average(CATEGORIES, isthing=True)[0] == dict(pq=0.5, sq=0.5, rq=0.5, n=2)


def test_things_and_stuff_are_averaged_apart():
    stat = PQStat()
    stat[1].tp, stat[1].iou, stat[7].tp, stat[7].iou = 1, 0.8, 1, 0.6
    assert stat.pq_average(CATEGORIES, isthing=True)[0]['pq'] == 0.8
    assert stat.pq_average(CATEGORIES, isthing=False)[0]['pq'] == 0.6
    assert PQStat().pq_average(CATEGORIES, isthing=False)[0] == dict(pq=0, sq=0, rq=0, n=0)


def test_statistics_of_several_processes_add_up():
    first, second = PQStat(), PQStat()
    first[1].tp, first[1].iou, second[1].tp, second[1].iou, second[2].fp = 1, 0.9, 1, 0.7, 1
    first += second
    assert (first[1].tp, first[1].iou, first[2].fp) == (2, pytest.approx(1.6), 1)


def test_mmdet_evaluates_maps_with_it(tmp_path):
    """Three of four pixels of the one thing are found, and all of the one stuff but for these."""
    from mmdet.evaluation.functional import pq_compute_multi_core

    truth = np.array([[5, 5, 5, 5], [9, 9, 9, 9]])
    found = np.array([[3, 3, 3, 4], [4, 4, 4, 4]])
    for name, ids in (('truth', truth), ('found', found)):
        Image.fromarray(id2rgb(ids)).save(tmp_path / f'{name}.png')
    segments = [
        [dict(id=i, category_id=c, iscrowd=0, area=4) for i, c in pairs]
        for pairs in (((5, 1), (9, 7)), ((3, 1), (4, 7)))
    ]
    pair = tuple(
        dict(image_id=1, file_name=f'{name}.png', segments_info=infos)
        for name, infos in zip(('truth', 'found'), segments)
    )
    stat = pq_compute_multi_core([pair], str(tmp_path), str(tmp_path), CATEGORIES, nproc=1)
    assert stat.pq_average(CATEGORIES, isthing=True)[0]['pq'] == pytest.approx(3 / 4)
    assert stat.pq_average(CATEGORIES, isthing=False)[0]['pq'] == pytest.approx(4 / 5)
