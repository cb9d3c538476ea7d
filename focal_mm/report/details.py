"""What a validation says beyond its metrics: results of each class, curves, the worst pictures.

Everything is returned as plain data, which JSON holds, so that it is read without running code.
Figures of objects come from the very ``COCOeval`` that the run's own metric uses; label maps and
classes are counted here, since the metrics of mmseg and mmpretrain keep no confusion matrix.
"""

import base64
import colorsys
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from PIL import Image

WORST = 20  # pictures
SIDE = 480  # the longer side of a picture in the report, in pixels
SCORE = 0.3  # an object below this score does not count in a picture's errors
IOUS = (0.5, 0.75)  # of the precision-recall curves
# A larger confusion matrix is kept as its largest entries.
MATRIX_CLASSES, MATRIX_ENTRIES = 151, 1000


# ---- pictures ----------------------------------------------------------------------------------


def palette_of(meta: dict, count: int) -> list[str]:
    """Return a color for each class, as ``#rrggbb``: the dataset's, or hues far from each other."""
    given = meta.get('palette')
    if isinstance(given, (list, tuple)) and len(given) >= count:
        return ['#{:02x}{:02x}{:02x}'.format(*map(int, color)) for color in given[:count]]
    hues = (colorsys.hsv_to_rgb(i * 0.618 % 1, 0.75, 0.95) for i in range(count))
    return ['#{:02x}{:02x}{:02x}'.format(*(round(255 * c) for c in color)) for color in hues]


def photo(path: str) -> str | None:
    """Return a picture as a small JPEG in base64, oriented as the pipelines read it.

    None if the file can't be read, for instance because it is in a remote storage.
    """
    try:
        image = mmcv.imread(path, channel_order='rgb')
        picture = Image.fromarray(image)
    except Exception:  # each decoder raises its own
        return None
    picture.thumbnail((SIDE, SIDE))
    return _encode(picture, 'JPEG', quality=80)


def overlay(labels: np.ndarray, palette: Sequence[str]) -> str:
    """Return a label map as a small PNG in base64, transparent where a label has no color.

    Args:
        labels (array): Labels of shape (H, W).
        palette (sequence of str): Color of each label.
    """
    step = max(1, -(-max(labels.shape) // SIDE))
    small = labels[::step, ::step].astype(np.int64)
    colors = np.zeros((len(palette) + 1, 4), np.uint8)
    for i, color in enumerate(palette):
        colors[i] = (*bytes.fromhex(color[1:]), 255)
    small[(small < 0) | (small >= len(palette))] = len(palette)
    return _encode(Image.fromarray(colors[small]), 'PNG', optimize=True)


def _encode(picture: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return base64.b64encode(data.getvalue()).decode()


def _rounded(values: Any, digits: int = 4) -> Any:
    """Return numbers as nested lists; None where a number is not finite or is COCO's -1."""
    values = np.asarray(values, float)
    known = np.isfinite(values) & (values > -1)
    return np.where(known, np.round(values, digits), np.array(None)).tolist()


# ---- objects -----------------------------------------------------------------------------------


@contextmanager
def recorded_evaluations(metrics: Sequence[Any]) -> Iterator[list[Any] | None]:
    """Record the COCOeval objects that metrics make, which is by far the longest part of an
    evaluation and not done a second time.

    Args:
        metrics (sequence): Metrics of an evaluator.

    Yields:
        list or None: The evaluations, each once it is accumulated; None if no metric uses COCOeval.
    """
    modules = {
        sys.modules[type(metric).compute_metrics.__module__]
        for metric in metrics
        if not getattr(metric, 'use_mp_eval', False)
    }
    modules = {module for module in modules if hasattr(module, 'COCOeval')}
    if not modules:
        yield None
        return
    done: list[Any] = []
    originals = {module: module.COCOeval for module in modules}

    def recorder(base: type) -> type:
        class Recorded(base):
            def accumulate(self, p: Any = None) -> None:
                super().accumulate(p)
                done.append(self)

        return Recorded

    try:
        for module, original in originals.items():
            module.COCOeval = recorder(original)  # type: ignore[attr-defined]
        yield done
    finally:
        for module, original in originals.items():
            module.COCOeval = original  # type: ignore[attr-defined]


def of_objects(
    evaluations: Sequence[Any], classes: Sequence[str], palette: Sequence[str], paths: dict
) -> dict[str, Any]:
    """Return the details of detections.

    Args:
        evaluations (sequence of COCOeval): One for each of boxes, masks and keypoints.
        classes (sequence of str): Names, in the order of the evaluations' categories.
        palette (sequence of str): Color of each class.
        paths (dict): File of each picture of the dataset, by its id in the annotations, which may
            be of more pictures.
    """
    evaluations = [one for one in evaluations if one.params.useCats]
    by_class: dict[str, Any] = {}
    curves = []
    for one in evaluations:
        kind, precision = one.params.iouType, one.eval['precision'][:, :, :, 0, -1]  # (T, R, K)
        known = np.where(precision > -1, precision, np.nan)
        at = {iou: int(np.abs(one.params.iouThrs - iou).argmin()) for iou in IOUS}
        by_class[f'{kind} AP'] = _rounded(_mean(known, (0, 1)))
        for iou, t in at.items():
            by_class[f'{kind} AP{iou:.0%}'.rstrip('%')] = _rounded(_mean(known[t], 0))
        curves.append(
            dict(
                name=kind,
                recall=_rounded(one.params.recThrs),
                precision={f'{iou:g}': _rounded(precision[t].T, 3) for iou, t in at.items()},
            )
        )
    details = dict(kind='objects', classes=list(classes), palette=list(palette))
    if not evaluations:
        return details
    counts = dict.fromkeys(evaluations[0].params.catIds, 0)
    for annotation in evaluations[0].cocoGt.dataset['annotations']:
        if annotation['category_id'] in counts and not annotation.get('iscrowd'):
            counts[annotation['category_id']] += 1
    by_class['objects'] = list(counts.values())
    judge = max(
        evaluations, key=lambda one: ('bbox', 'keypoints', 'segm').index(one.params.iouType)
    )
    return details | dict(
        by_class=by_class, curves=curves, worst=_worst_objects(judge, palette, paths)
    )


def _mean(values: np.ndarray, axes: Any) -> np.ndarray:
    """Return the mean of the numbers that are not NaN; NaN where there are none."""
    count = np.isfinite(values).sum(axes)
    return np.where(count, np.nansum(values, axes) / np.maximum(count, 1), np.nan)


def _worst_objects(one: Any, palette: Sequence[str], paths: dict) -> list[dict]:
    """Return the pictures with the lowest F1 score at an IoU of 0.5 and a score of 0.3."""
    t = int(np.abs(one.params.iouThrs - 0.5).argmin())
    images, areas = one.params.imgIds, len(one.params.areaRng)
    hits, misses, wrong = ({image: set() for image in images} for _ in range(3))  # type: ignore[var-annotated]
    for k in range(len(one.params.catIds)):
        start = k * areas * len(images)
        for image, found in zip(images, one.evalImgs[start : start + len(images)]):
            if found is None:
                continue
            sure = (np.asarray(found['dtScores']) >= SCORE) & ~found['dtIgnore'][t].astype(bool)
            hit = set(found['dtMatches'][t][sure].astype(int)) - {0}
            ids = np.asarray(found['dtIds'])
            hits[image] |= hit
            wrong[image] |= set(ids[sure & (found['dtMatches'][t] == 0)].tolist())
            wanted = np.asarray(found['gtIds'])[~np.asarray(found['gtIgnore'], bool)]
            misses[image] |= set(wanted.tolist()) - hit
    f1 = {
        image: 2
        * len(hits[image])
        / max(1, 2 * len(hits[image]) + len(misses[image]) + len(wrong[image]))
        for image in images
        if image in paths and (misses[image] or wrong[image])
    }
    order = sorted(f1, key=lambda image: (f1[image], -len(misses[image]) - len(wrong[image])))
    colors = dict(zip(one.params.catIds, range(len(palette))))
    worst = []
    for image in order[:WORST]:
        info = one.cocoGt.loadImgs([image])[0]
        size = info.get('width'), info.get('height')
        worst.append(
            dict(
                name=info.get('file_name', str(image)),
                note=f'{len(misses[image])} missed, {len(wrong[image])} wrong, '
                f'{len(hits[image])} found',
                size=size,
                photo=photo(paths[image]),
                truth=_objects(one.cocoGt, image, misses[image], colors, palette, size),
                found=_objects(one.cocoDt, image, wrong[image], colors, palette, size),
            )
        )
    return worst


def _objects(
    coco: Any, image: Any, faulty: set, colors: dict, palette: Sequence[str], size: tuple
) -> dict:
    """Return the objects of a picture; ``faulty`` are the ids of those missed or wrong."""
    annotations = [
        one
        for one in coco.imgToAnns[image]
        if one['category_id'] in colors and one.get('score', 1) >= SCORE
    ]
    annotations.sort(key=lambda one: -float(one.get('area', 0)))
    boxes = [
        dict(
            box=_rounded(one['bbox'], 1),
            label=colors[one['category_id']],
            score=round(float(one['score']), 3) if 'score' in one else None,
            faulty=one['id'] in faulty,
            crowd=bool(one.get('iscrowd')),
            points=_rounded(np.reshape(one.get('keypoints', []), (-1, 3)), 1),
        )
        for one in annotations
        if 'bbox' in one
    ]
    drawn: dict[str, Any] = dict(boxes=boxes)
    if all(size) and any(one.get('segmentation') for one in annotations):
        labels = np.full(size[::-1], -1)
        for one in annotations:
            if one.get('segmentation'):
                labels[coco.annToMask(one).astype(bool)] = colors[one['category_id']]
        drawn['overlay'] = overlay(labels, palette)
    return drawn


# ---- samples -----------------------------------------------------------------------------------


def _array(value: Any) -> np.ndarray:
    """Return a tensor, a list or boxes of mmdet as an array."""
    value = getattr(value, 'tensor', value)
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


class Boxes:
    """Boxes of data samples, for metrics that don't use COCOeval, such as those of VOC and LVIS.

    Args:
        classes (sequence of str): Names of the classes.
        palette (sequence of str): Color of each class.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[str]) -> None:
        self.classes, self.palette = list(classes), list(palette)
        self.samples: dict[str, dict] = {}

    @staticmethod
    def fits(sample: Any) -> bool:
        """Return whether a sample has what is collected."""
        return all(
            'bboxes' in sample.get(key, ()) and 'labels' in sample.get(key)
            for key in ('gt_instances', 'pred_instances')
        )

    def add(self, sample: Any) -> None:
        """Take a sample."""
        truth, found = sample.gt_instances, sample.pred_instances
        ignored = sample.get('ignored_instances')
        self.samples[sample.img_path] = dict(
            size=[int(side) for side in sample.ori_shape[1::-1]],
            truth=(_array(truth.bboxes), _array(truth.labels)),
            ignored=(_array(ignored.bboxes), _array(ignored.labels)) if ignored else ((), ()),
            found=(_array(found.bboxes), _array(found.labels), _array(found.scores)),
        )

    def merge(self, other: 'Boxes') -> None:
        """Take the samples of another process."""
        self.samples |= other.samples

    def result(self) -> dict[str, Any]:
        """Return the details."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        images: list[dict] = []
        truths: list[dict] = []
        found: list[dict] = []
        for number, (path, sample) in enumerate(self.samples.items(), 1):
            width, height = sample['size']
            images.append(dict(id=number, file_name=Path(path).name, width=width, height=height))
            for key in ('truth', 'ignored'):
                truths += [
                    one | dict(id=len(truths) + i, iscrowd=int(key == 'ignored'))
                    for i, one in enumerate(self._annotations(number, *sample[key]), 1)
                ]
            found += self._annotations(number, *sample['found'])
        truth: Any = COCO()
        truth.dataset = dict(
            info={},
            images=images,
            annotations=truths,
            categories=[dict(id=i, name=name) for i, name in enumerate(self.classes)],
        )
        truth.createIndex()
        evaluations = []
        if found:
            evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
            evaluation.evaluate()
            evaluation.accumulate()
            evaluations.append(evaluation)
        return of_objects(evaluations, self.classes, self.palette, dict(enumerate(self.samples, 1)))

    @staticmethod
    def _annotations(image: int, boxes: Any, labels: Any, scores: Any = None) -> list[dict]:
        return [
            dict(
                image_id=image,
                category_id=int(label),
                bbox=[float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                area=float((x2 - x1) * (y2 - y1)),
                **({} if scores is None else dict(score=float(scores[i]))),
            )
            for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels))
        ]


class _Confusion:
    """A confusion matrix, rows the truth and columns the prediction, and the worst pictures.

    Args:
        classes (sequence of str): Names of the classes.
        palette (sequence of str): Color of each class.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[str]) -> None:
        self.classes, self.palette = list(classes), list(palette)
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)
        self.worst: list[tuple[float, dict]] = []

    def merge(self, other: '_Confusion') -> None:
        """Take what another process has counted."""
        self.matrix += other.matrix
        self._keep(*other.worst)

    def _count(self, truth: np.ndarray, found: np.ndarray) -> None:
        count = len(self.classes)
        known = (truth >= 0) & (truth < count) & (found >= 0) & (found < count)
        pairs = truth[known].astype(np.int64) * count + found[known]
        self.matrix += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def _keep(self, *pictures: tuple[float, dict]) -> None:
        self.worst = sorted([*self.worst, *pictures], key=lambda one: one[0])[:WORST]

    def _details(self, kind: str, by_class: dict[str, Any]) -> dict[str, Any]:
        entries = np.argwhere(self.matrix).tolist()
        entries.sort(key=lambda entry: -self.matrix[tuple(entry)])
        if len(self.classes) > MATRIX_CLASSES:
            off = [entry for entry in entries if entry[0] != entry[1]]
            entries = off[:MATRIX_ENTRIES]
        return dict(
            kind=kind,
            classes=self.classes,
            palette=self.palette,
            by_class=by_class,
            confusion=[[t, p, int(self.matrix[t, p])] for t, p in entries],
            worst=[
                dict(picture, photo=photo(picture['path']), name=Path(picture['path']).name)
                for _, picture in self.worst
            ],
        )


class Labels(_Confusion):
    """Label maps of data samples; worst are the pictures of the lowest mean IoU."""

    @staticmethod
    def fits(sample: Any) -> bool:
        """Return whether a sample has what is collected."""
        return 'gt_sem_seg' in sample and 'pred_sem_seg' in sample

    def add(self, sample: Any) -> None:
        """Take a sample."""
        truth, found = (
            _array(next(iter(part.values()))).squeeze().astype(np.int64)
            for part in (sample.gt_sem_seg, sample.pred_sem_seg)
        )
        total, self.matrix = self.matrix, np.zeros_like(self.matrix)
        known = (truth >= 0) & (truth < len(self.classes))
        self._count(truth[known], found[known])
        iou = _iou(self.matrix)
        self.matrix += total
        present = np.isfinite(iou)
        if not present.any():
            return
        score = float(iou[present].mean())
        if len(self.worst) == WORST and score >= self.worst[-1][0]:
            return
        picture = dict(
            path=sample.img_path,
            note=f'mIoU {100 * score:.1f}',
            size=truth.shape[::-1],
            truth=dict(overlay=overlay(truth, self.palette)),
            found=dict(overlay=overlay(np.where(known, found, -1), self.palette)),
        )
        self._keep((score, picture))

    def result(self) -> dict[str, Any]:
        """Return the details; IoU, accuracy and share of the pixels are in percent."""
        with np.errstate(invalid='ignore', divide='ignore'):
            by_class = {
                'IoU': _rounded(100 * _iou(self.matrix), 2),
                'accuracy': _rounded(100 * self.matrix.diagonal() / self.matrix.sum(1), 2),
                'share of pixels': _rounded(100 * self.matrix.sum(1) / self.matrix.sum(), 2),
            }
        return self._details('labels', by_class)


def _iou(matrix: np.ndarray) -> np.ndarray:
    """Return the IoU of each class; NaN where a class is in neither truth nor prediction."""
    hit = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.where(union, hit / np.maximum(union, 1), np.nan)


class Classes(_Confusion):
    """Classes of data samples; worst are those to whose class the lowest probability is given."""

    @staticmethod
    def fits(sample: Any) -> bool:
        """Return whether a sample has what is collected: one true class, and scores."""
        return 'pred_score' in sample and len(sample.get('gt_label', ())) == 1

    def add(self, sample: Any) -> None:
        """Take a sample."""
        scores = _array(sample.pred_score)
        truth, found = int(sample.gt_label[0]), int(scores.argmax())
        self._count(np.array([truth]), np.array([found]))
        score = float(scores[truth])
        if found == truth or (len(self.worst) == WORST and score >= self.worst[-1][0]):
            return
        path = sample.get('img_path') or ''
        picture = dict(
            path=path,
            note=f'{self.classes[truth]} {100 * score:.1f} %, '
            f'taken for {self.classes[found]} {100 * scores[found]:.1f} %',
        )
        self._keep((score, picture))

    def result(self) -> dict[str, Any]:
        """Return the details; accuracy and precision are in percent."""
        with np.errstate(invalid='ignore', divide='ignore'):
            by_class = {
                'accuracy': _rounded(100 * self.matrix.diagonal() / self.matrix.sum(1), 2),
                'precision': _rounded(100 * self.matrix.diagonal() / self.matrix.sum(0), 2),
                'pictures': self.matrix.sum(1).tolist(),
            }
        return self._details('classes', by_class)


COLLECTORS: tuple[Any, ...] = (Labels, Boxes, Classes)
