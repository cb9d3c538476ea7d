"""Predictions for pictures and videos: drawn, and as files that other programs read."""

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from ..cache import whole_file
from ..config import datasets_of, library, type_name
from ..datasets.classes import shorten
from .output import track
from .pictures import (
    TILES,
    WRITTEN,
    DrawnVideos,
    Frame,
    Source,
    count_frames,
    draw_contact_sheet,
    read_frames,
    write_label_map,
    write_picture,
)


class Predictor:
    """A model with the inferencer of its library.

    Args:
        cfg (Config): A config for mmdet, mmseg, mmpretrain or mmpose.
        checkpoint (str): What mmengine takes: a file, an address, ``focal://NAME``.
        device (str): As torch takes it.

    Attributes:
        library (str): ``'mmdet'``, ``'mmseg'``, ``'mmpretrain'`` or ``'mmpose'``.
        dataset (ConfigDict): The dataset that the config tests on.
        classes (list[str]): Names of the classes: of the checkpoint, else of the dataset.
        palette (array): A color for each, RGB in 8 bits.
        first_label (int): Number that label maps have for the first class.

    Raises:
        ValueError: If the config tests on no pictures, or the checkpoint is of another model.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str) -> None:
        kind = library(cfg)
        if kind is None:
            raise ValueError(
                f'{cfg.filename}: its test_dataloader packs pictures for none of mmdet, mmseg, '
                'mmpretrain and mmpose'
            )
        self.library = kind
        cfg = copy.deepcopy(cfg)
        init_default_scope(cfg.get('default_scope') or kind)
        self.dataset = _use_one_dataset(cfg)
        metainfo = DATASETS.build(dict(self.dataset, lazy_init=True)).metainfo
        self.inferencer = self._build(cfg, device)
        self.model: Any = self.inferencer.model
        metainfo = metainfo | load_weights(self.model, checkpoint)
        self.classes, self.palette = _names_and_colors(self.model, metainfo)
        self.first_label = int(metainfo.get('reduce_zero_label') or False)
        self._set_names(metainfo)

    def _build(self, cfg: Config, device: str) -> Any:
        """Return the inferencer, whose model has random weights yet."""
        if self.library == 'mmdet':
            from mmdet.apis import DetInferencer

            return DetInferencer(cfg, device=device, show_progress=False)
        if self.library == 'mmseg':
            from mmseg.apis import MMSegInferencer

            return MMSegInferencer(cfg, device=device)
        if self.library == 'mmpretrain':
            from mmpretrain.apis import ImageClassificationInferencer
            from mmpretrain.visualization import UniversalVisualizer

            inferencer = ImageClassificationInferencer(cfg, pretrained=False, device=device)
            inferencer.visualizer = UniversalVisualizer()
            return inferencer
        from mmpose.apis import Pose2DInferencer

        return Pose2DInferencer(cfg, device=device, det_model='whole_image')

    def _set_names(self, metainfo: dict) -> None:
        names = dict(
            classes=self.classes, palette=[tuple(color) for color in self.palette.tolist()]
        )
        if self.library == 'mmpretrain':
            self.inferencer.classes = self.classes
        elif self.library != 'mmpose':
            self.model.dataset_meta = metainfo | names
            if self.library == 'mmseg':
                self.model.dataset_meta = names
            self.inferencer.visualizer.dataset_meta = self.model.dataset_meta

    def forward(self, images: Sequence[np.ndarray]) -> list:
        """Return a data sample for each picture of one size."""
        samples = []
        for batch in self.inferencer.preprocess(images, batch_size=len(images)):
            data = batch
            if self.library == 'mmdet':
                _, data = batch
            elif self.library == 'mmpose':
                data, _ = batch
            samples += self.inferencer.forward(data)
        return [sample.cpu() for sample in samples]

    def draw(self, images: Sequence[np.ndarray], samples: list, score: float) -> list[np.ndarray]:
        """Return the pictures with what was found on them, RGB."""
        visualize = self.inferencer.visualize
        if self.library == 'mmpose':
            return visualize(images, samples, return_vis=True, kpt_thr=score)
        images = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        if self.library == 'mmdet':
            return visualize(images, samples, return_vis=True, pred_score_thr=score)
        if self.library == 'mmseg':
            return visualize(images, samples, return_vis=True, opacity=0.5)
        visualizer = self.inferencer.visualizer
        return [
            visualizer.visualize_cls(image, sample, classes=self.classes)
            for image, sample in zip(images, samples)
        ]


def _use_one_dataset(cfg: Config) -> ConfigDict:
    """Make a config test on one dataset that reads pictures without annotations; return it."""
    dataset = next(datasets_of(cfg.test_dataloader))
    names = [type_name(step) for step in dataset.pipeline]
    if 'LoadImageFromFile' in names:
        dataset.pipeline[names.index('LoadImageFromFile')].type = 'LoadImageFromFile'
    elif 'LoadImage' not in names:  # mmpose's
        raise ValueError(
            f'{cfg.filename}: its test pipeline loads pictures by {names[0]}; single pictures '
            'need LoadImageFromFile'
        )
    dataset.pipeline = [
        step
        for step in dataset.pipeline
        if not (type_name(step).startswith('Load') and 'Annotation' in type_name(step))
    ]
    cfg.test_dataloader.dataset = dataset
    return copy.deepcopy(dataset)


def load_weights(model: nn.Module, checkpoint: str) -> dict:
    """Load a whole model and return what the checkpoint says of the data that it was trained on.

    Raises:
        ValueError: If the checkpoint has not all weights that a prediction needs. A test would go
            on with random ones.
    """
    complaints: list[str] = []
    logger = logging.getLogger('focal_mm.predict')

    def keep(record: logging.LogRecord) -> bool:
        complaints.append(record.getMessage())
        return False

    missing: list[str] = []
    logger.addFilter(keep)
    hook = model.register_load_state_dict_post_hook(
        lambda _, keys: missing.extend(
            key for key in keys.missing_keys if not key.startswith('auxiliary_head')
        )
    )
    try:
        content = load_checkpoint(model, checkpoint, map_location='cpu', logger=logger)
    finally:
        hook.remove()
        logger.removeFilter(keep)
    unfit = [
        line.strip()
        for text in complaints
        for line in text.splitlines()
        if line.startswith('size mismatch')
    ]
    if unfit or missing:
        name = type(model).__name__
        reason = unfit[0] if unfit else f'it lacks {shorten(missing, 3)}'
        raise ValueError(f'{checkpoint} is no checkpoint of this whole {name}: {reason}')
    meta = content.get('meta') or {}
    if 'CLASSES' in meta:  # of mmdet 2, mmseg 0 and mmcls 0
        return dict(classes=meta['CLASSES'], palette=meta.get('PALETTE'))
    return {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}


def _names_and_colors(model: nn.Module, metainfo: dict) -> tuple[list[str], np.ndarray]:
    """Return a name and a color for each class of a model, whether the data has them or not."""
    classes = list(metainfo.get('classes') or ())
    heads = [getattr(module, 'num_classes', 0) for module in model.modules()]
    count = max([len(classes), *(number for number in heads if isinstance(number, int))])
    classes += [f'class {i}' for i in range(len(classes), count)]
    palette = np.random.default_rng(0).integers(0, 256, (count, 3), np.uint8)
    known = metainfo.get('palette')
    if isinstance(known, (list, tuple)):
        palette[: len(known)] = known[:count]
    return classes, palette


class Objects:
    """What detectors find, in COCO's format.

    The whole is a dataset with ``images``, ``annotations`` and ``categories``; its ``annotations``
    alone are what ``COCO.loadRes`` takes. Boxes are (x, y, width, height) in pixels, masks
    run-length encoded. Panoptic segments are beside it in COCO's panoptic format.

    Args:
        predictor (Predictor): The detector.
        out (Path): Folder for the pictures of panoptic segments.
        score (float): Objects with a lower score are left out.
    """

    def __init__(self, predictor: Predictor, out: Path, score: float) -> None:
        self.predictor, self.out, self.score = predictor, out, score
        self.ids = category_ids(predictor.dataset, predictor.classes)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.panoptic: list[dict] = []

    def add(self, image: dict, name: str, sample: Any) -> None:
        """Add the prediction for a picture."""
        from mmdet.structures.mask import encode_mask_results, mask2bbox

        self.images.append(image)
        if 'pred_panoptic_seg' in sample:
            self._add_panoptic(image, name, sample)
        if 'pred_instances' not in sample:
            return
        found = sample.pred_instances
        found = found[found.scores >= self.score]
        boxes = found.bboxes.tensor if hasattr(found.bboxes, 'tensor') else found.bboxes
        masks = found.get('masks')
        encoded = encode_mask_results(np.asarray(masks)) if masks is not None else None
        if masks is not None and not boxes.any():  # of models that find masks only
            boxes = mask2bbox(masks)
        for i, (box, label, value) in enumerate(zip(boxes.tolist(), found.labels, found.scores)):
            x, y, right, bottom = box
            annotation = dict(
                id=len(self.annotations) + 1,
                image_id=image['id'],
                category_id=self.ids[int(label)],
                bbox=[round(side, 2) for side in (x, y, right - x, bottom - y)],
                area=round((right - x) * (bottom - y), 2),
                iscrowd=0,
                score=round(float(value), 5),
            )
            if encoded is not None:
                mask = encoded[i]
                annotation['area'] = int(masks[i].sum())
                annotation['segmentation'] = dict(
                    size=list(map(int, mask['size'])), counts=mask['counts'].decode()
                )
            self.annotations.append(annotation)

    def _add_panoptic(self, image: dict, name: str, sample: Any) -> None:
        from mmdet.evaluation import INSTANCE_OFFSET

        segments = sample.pred_panoptic_seg.sem_seg[0].numpy()
        infos = []
        for number in np.unique(segments):
            label, inside = int(number) % INSTANCE_OFFSET, segments == number
            if label >= len(self.predictor.classes):
                segments[inside] = 0  # nothing, as in COCO
                continue
            segments[inside] = number + 1  # 0 is no segment
            infos.append(
                dict(id=int(number) + 1, category_id=self.ids[label], area=int(inside.sum()))
            )
        file = f'panoptic/{name}.png'
        colors = np.stack([segments >> shift & 255 for shift in (0, 8, 16)], -1)
        write_picture(self.out / file, colors.astype(np.uint8))
        self.panoptic.append(dict(image_id=image['id'], file_name=file, segments_info=infos))

    def content(self) -> dict:
        """Return the content of ``predictions.json``."""
        classes = self.predictor.classes
        return dict(
            images=self.images,
            annotations=self.annotations,
            categories=[dict(id=id, name=name) for id, name in zip(self.ids, classes)],
            **(dict(panoptic=self.panoptic) if self.panoptic else {}),
        )


def category_ids(dataset: ConfigDict, classes: Sequence[str]) -> list[int]:
    """Return COCO's number of each class: of the dataset's annotation file, if it is here.

    Otherwise the classes of COCO have their own numbers, and others count from 1.
    """
    file = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    known: dict[str, int] = {}
    if file.suffix == '.json' and file.is_file():
        content = json.loads(file.read_bytes())
        known = {category['name']: category['id'] for category in content.get('categories', [])}
    else:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta['categories']
        known = {name: number for number, name in enumerate(names)}
    if all(name in known for name in classes):
        return [known[name] for name in classes]
    return list(range(1, len(classes) + 1))


class LabelMaps:
    """What segmentors find: for each picture a PNG file of labels, in the colors of the classes.

    The numbers are those of the dataset's own annotations. ``predictions.json`` lists the classes
    by number, and for each picture the share of each class.

    Args:
        predictor (Predictor): The segmentor.
        out (Path): Folder for the label maps.
        score (float): Not used: every pixel has a label.
    """

    def __init__(self, predictor: Predictor, out: Path, score: float) -> None:
        self.predictor, self.out = predictor, out
        self.images: list[dict] = []

    def add(self, image: dict, name: str, sample: Any) -> None:
        """Add the prediction for a picture."""
        labels, first = sample.pred_sem_seg.data[0].numpy(), self.predictor.first_label
        numbers, counts = np.unique(labels, return_counts=True)
        file = f'labels/{name}.png'
        write_label_map(self.out / file, labels + first, self.predictor.palette, first)
        self.images.append(
            image
            | dict(
                label_map=file,
                shares={
                    self.predictor.classes[number]: round(count / labels.size, 4)
                    for number, count in zip(numbers.tolist(), counts.tolist())
                },
            )
        )

    def content(self) -> dict:
        """Return the content of ``predictions.json``."""
        classes = enumerate(self.predictor.classes, self.predictor.first_label)
        return dict(images=self.images, categories=[dict(id=id, name=name) for id, name in classes])


class Classes:
    """What classifiers find: the five classes of the highest scores.

    Args:
        predictor (Predictor): The classifier.
        out (Path): Not used.
        score (float): Not used: every picture has a class.
    """

    def __init__(self, predictor: Predictor, out: Path, score: float) -> None:
        self.predictor = predictor
        self.images: list[dict] = []

    def add(self, image: dict, name: str, sample: Any) -> None:
        """Add the prediction for a picture."""
        scores, labels = sample.pred_score.topk(min(5, len(sample.pred_score)))
        best = [
            dict(label=label, name=self.predictor.classes[label], score=round(score, 5))
            for label, score in zip(labels.tolist(), scores.tolist())
        ]
        self.images.append(image | best[0] | dict(best=best))

    def content(self) -> dict:
        """Return the content of ``predictions.json``."""
        return dict(images=self.images)


class Keypoints:
    """What pose estimators find, in COCO's format; a picture counts as one person.

    Args:
        predictor (Predictor): The pose estimator.
        out (Path): Not used.
        score (float): Keypoints with a lower score are marked as not visible.
    """

    def __init__(self, predictor: Predictor, out: Path, score: float) -> None:
        self.predictor, self.score = predictor, score
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, image: dict, name: str, sample: Any) -> None:
        """Add the prediction for a picture."""
        self.images.append(image)
        found = sample.pred_instances
        for points, scores in zip(found.keypoints.tolist(), found.keypoint_scores.tolist()):
            visible = [2 if score >= self.score else 0 for score in scores]
            self.annotations.append(
                dict(
                    id=len(self.annotations) + 1,
                    image_id=image['id'],
                    category_id=1,
                    keypoints=[value for (x, y), v in zip(points, visible) for value in (x, y, v)],
                    num_keypoints=sum(map(bool, visible)),
                    score=sum(scores) / len(scores),
                )
            )

    def content(self) -> dict:
        """Return the content of ``predictions.json``."""
        names = self.predictor.model.dataset_meta['keypoint_id2name']
        category = dict(id=1, name='person', keypoints=[names[i] for i in sorted(names)])
        return dict(images=self.images, annotations=self.annotations, categories=[category])


RESULTS = dict(mmdet=Objects, mmseg=LabelMaps, mmpretrain=Classes, mmpose=Keypoints)


@dataclass
class Summary:
    """How a run of predictions went.

    Attributes:
        out (str): Folder of the results.
        pictures (int): Number of pictures and frames.
        objects (int or None): Number of objects found; None for other models than detectors.
        seconds (float): Time of all, from the first picture to the last file.
        model_seconds (float): Time of preprocessing and the model.
        skipped (dict[str, str]): Files that could not be read, and the reason.
        files (list[str]): What is in the folder: ``drawn``, ``labels``, ``predictions.json``, ...
    """

    out: str
    pictures: int = 0
    objects: int | None = None
    seconds: float = 0.0
    model_seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Pictures a second, with reading, drawing and writing."""
        return self.pictures / self.seconds if self.seconds else 0.0


def predict(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    score: float = 0.3,
    batch: int = 1,
) -> Summary:
    """Predict pictures and videos, and write what was found.

    The folder then has ``drawn/`` with a picture or video for each source under its name,
    ``predictions.json``, ``contact_sheet.jpg`` with up to :data:`TILES` pictures, and for
    segmentors ``labels/``. Each file is written whole or not at all.

    Args:
        predictor (Predictor): The model.
        sources (sequence of Source): What :func:`find_sources` returns.
        out (Path): Folder of the results.
        score (float): Lower scores are left out. Default: 0.3.
        batch (int): Number of pictures that the model gets at once, if they are of one size.
            Default: 1.
    """
    summary = Summary(str(out))
    results: Any = RESULTS[predictor.library](predictor, out, score)
    videos = DrawnVideos(out / 'drawn')
    total = sum(map(count_frames, sources))
    shown = {round(i * (total - 1) / max(1, TILES - 1)) for i in range(TILES)}
    tiles: list[tuple[str, np.ndarray]] = []
    names: set[str] = set()

    def run(frames: Sequence[Frame]) -> None:
        images = [frame.image for frame in frames]
        start = time.perf_counter()
        samples = predictor.forward(images)
        summary.model_seconds += time.perf_counter() - start
        for frame, sample, drawn in zip(frames, samples, predictor.draw(images, samples, score)):
            number = '' if frame.number is None else f'/{frame.number:06d}'
            height, width = frame.image.shape[:2]
            stem = Path(frame.source.name).with_suffix('').as_posix()
            name = frame.source.name if number or stem in names else stem
            names.add(name)
            image = dict(
                id=summary.pictures + 1,
                file_name=frame.source.name + number,
                width=width,
                height=height,
            )
            results.add(image, name + number, sample)
            if number:
                videos.add(frame.source, drawn)
            else:
                suffix = '' if frame.source.path.suffix.lower() in WRITTEN else '.jpg'
                write_picture(out / 'drawn' / (frame.source.name + suffix), drawn)
            if summary.pictures in shown:
                tiles.append((image['file_name'], drawn))
            summary.pictures += 1

    start, pending = time.perf_counter(), list[Frame]()
    frames = (frame for source in sources for frame in read_frames(source, summary.skipped))
    for frame in track(frames, 'predicting', total):
        if pending and (len(pending) == batch or frame.image.shape != pending[0].image.shape):
            run(pending)
            pending = []
        pending.append(frame)
    if pending:
        run(pending)
    videos.close()
    if summary.pictures:
        draw_contact_sheet(tiles, out / 'contact_sheet.jpg')
        content = json.dumps(results.content(), ensure_ascii=False)
        with whole_file(out / 'predictions.json') as part:
            part.write_text(content, encoding='utf-8')
        made = ('drawn', 'labels', 'panoptic', 'predictions.json', 'contact_sheet.jpg')
        summary.files = [name for name in made if (out / name).exists()]
    if isinstance(results, Objects):
        summary.objects = len(results.annotations)
    summary.seconds = time.perf_counter() - start
    return summary
