import base64
import io

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.evaluation import ConfusionMatrix
from mmpretrain.structures import DataSample
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image

from focal_mm.report import details

pytestmark = pytest.mark.stock
CLASSES = ('dog', 'кот')
PALETTE = ['#ff0000', '#00ff00']


def picture(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def detections(content, folder):
    """Samples with one object each: found in one class, shifted, missed, or of the wrong class."""
    samples = []
    for image, truth in zip(content['images'], content['annotations']):
        number = image['id'] - 1
        x, y, w, h = truth['bbox']
        label = [7, 30].index(truth['category_id'])
        shift, found = [(0, label), (4, label), (40, label), (0, 1 - label)][number % 4]
        sample = DetDataSample(
            metainfo=dict(
                img_id=image['id'], img_path=str(folder / image['file_name']), ori_shape=(40, 60)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[x, y, x + w, y + h]], dtype=torch.float),
            labels=torch.tensor([label]),
        )
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[x + shift, y, x + w + shift, y + h]], dtype=torch.float),
            labels=torch.tensor([found]),
            scores=torch.tensor([0.9 - 0.01 * number]),
        )
        samples.append(sample)
    return samples


@pytest.fixture
def detected(write_coco):
    file, folder, content = write_coco(count=8)
    return file, detections(content, folder)


def of_metric(detected):
    file, samples = detected
    metric = CocoMetric(ann_file=str(file), metric='bbox', classwise=True)
    metric.dataset_meta = dict(classes=CLASSES)
    with details.recorded_evaluations([metric]) as evaluations:
        metric.process({}, [sample.to_dict() for sample in samples])
        results = metric.evaluate(len(samples))
    paths = {sample.img_id: sample.img_path for sample in samples}
    return details.of_objects(evaluations, CLASSES, PALETTE, paths), results


def test_results_of_classes_are_those_of_the_metric(detected):
    found, results = of_metric(detected)
    for name, value in zip(CLASSES, found['by_class']['bbox AP']):
        assert value == pytest.approx(results[f'coco/{name}_precision'], abs=6e-4)
    assert 0 < results['coco/bbox_mAP'] < 1
    for key, metric in (('bbox AP50', 'bbox_mAP_50'), ('bbox AP75', 'bbox_mAP_75')):
        mean = np.mean(found['by_class'][key])
        assert mean == pytest.approx(results[f'coco/{metric}'], abs=6e-4)
        curve = np.mean(found['curves'][0]['precision'][f'0.{key[-2:].rstrip("0")}'])
        assert curve == pytest.approx(mean, abs=1e-3)
    assert found['by_class']['objects'] == [4, 4]


def test_worst_pictures_are_those_with_errors(detected):
    found, _ = of_metric(detected)
    assert [one['note'] for one in found['worst']] == ['1 missed, 1 wrong, 0 found'] * 4
    names = {one['name'] for one in found['worst']}
    assert names == {f'train set/{i % 2}/фото {i}.jpg' for i in (3, 4, 7, 8)}
    one = found['worst'][0]
    assert picture(one['photo']).shape == (40, 60, 3)
    assert one['truth']['boxes'][0]['faulty'] and one['found']['boxes'][0]['faulty']
    assert one['truth']['boxes'][0]['box'] == [5, 5, 20, 10]


def test_metrics_are_given_back_their_evaluation(detected):
    from mmdet.evaluation.metrics import coco_metric

    before = coco_metric.COCOeval
    of_metric(detected)
    assert coco_metric.COCOeval is before


def test_boxes_of_samples_give_the_same_without_a_metric_of_coco(detected):
    expected, _ = of_metric(detected)
    halves = [details.Boxes(CLASSES, PALETTE) for _ in range(2)]
    for i, sample in enumerate(detected[1]):
        assert details.Boxes.fits(sample)
        halves[i % 2].add(sample)
    halves[0].merge(halves[1])
    found = halves[0].result()
    assert found['by_class'] == expected['by_class']
    assert found['curves'] == expected['curves']
    assert {one['note'] for one in found['worst']} == {one['note'] for one in expected['worst']}


def test_no_detection_at_all_is_no_error(detected):
    boxes = details.Boxes(CLASSES, PALETTE)
    for sample in detected[1]:
        sample.pred_instances = sample.pred_instances[:0]
        boxes.add(sample)
    assert boxes.result()['classes'] == list(CLASSES)


def test_ious_are_those_of_the_metric(tmp_path):
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=('a', 'b', 'c', 'absent'))
    colors = details.palette_of({}, 4)
    halves = [details.Labels(metric.dataset_meta['classes'], colors) for _ in range(2)]
    for i in range(30):
        truth = torch.randint(0, 3, (1, 20, 600))
        found = torch.where(torch.rand(truth.shape) < i / 30, truth, torch.randint(0, 3, (1,)))
        truth[:, :2] = 255
        path = tmp_path / f'{i}.png'
        Image.new('RGB', (600, 20)).save(path)
        sample = SegDataSample(metainfo=dict(img_path=str(path)))
        sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=found)
        metric.process({}, [sample.to_dict()])
        assert details.Labels.fits(sample)
        halves[i % 2].add(sample)
    halves[0].merge(halves[1])
    found = halves[0].result()
    results = metric.evaluate(30)
    known = [value for value in found['by_class']['IoU'] if value is not None]
    assert len(known) == 3 and found['by_class']['IoU'][3] is None
    assert np.mean(known) == pytest.approx(results['mIoU'], abs=0.01)
    assert sum(entry[2] for entry in found['confusion']) == 30 * 18 * 600
    scores = [float(one['note'].split()[1]) for one in found['worst']]
    assert len(scores) == details.WORST and scores == sorted(scores)
    drawn = picture(found['worst'][0]['truth']['overlay'])
    assert max(drawn.shape) <= details.SIDE
    assert (drawn[0, :, 3] == 0).all() and (drawn[-1, :, 3] == 255).all()  # 255 is no class


def test_confusion_of_classes_is_that_of_the_metric():
    classes = ('a', 'b', 'c')
    counted = details.Classes(classes, details.palette_of({}, 3))
    metric = ConfusionMatrix(num_classes=3)
    for i in range(40):
        sample = DataSample(metainfo=dict(img_path=f'/absent/{i}.png'))
        sample.set_gt_label(i % 3).set_pred_score(torch.rand(3).softmax(0))
        sample.set_pred_label(sample.pred_score.argmax())
        metric.process({}, [sample.to_dict()])
        assert details.Classes.fits(sample)
        counted.add(sample)
    found = counted.result()
    expected = metric.evaluate(40)['confusion_matrix/result']
    matrix = torch.zeros_like(expected)
    for truth, guess, number in found['confusion']:
        matrix[truth, guess] = number
    assert matrix.equal(expected)
    assert found['worst'] and all('taken for' in one['note'] for one in found['worst'])
    assert found['worst'][0]['photo'] is None  # there is no such file


def test_large_confusion_matrices_keep_their_largest_errors():
    count = details.MATRIX_CLASSES + 49
    counted = details.Classes([str(i) for i in range(count)], details.palette_of({}, count))
    counted.matrix[:] = np.random.default_rng(0).integers(0, 1000, (count, count))
    entries = counted.result()['confusion']
    assert len(entries) == details.MATRIX_ENTRIES
    least = min(number for *_, number in entries)
    off = counted.matrix[~np.eye(count, dtype=bool)]
    assert (off > least).sum() < details.MATRIX_ENTRIES <= (off >= least).sum()
