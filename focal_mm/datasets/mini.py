"""Conversion of any OpenMMLab config to a short run on the mini dataset of its task."""

import copy
import math
from typing import Any

from mmengine.config import Config, ConfigDict

from ..config import (
    DATALOADERS,
    datasets_of,
    dicts,
    is_pretrained,
    library,
    loader_types,
    type_name,
)
from .shapes import (
    GROUND,
    IMAGE_SIZE,
    KEYPOINTS,
    NUM_IMAGES,
    PALETTE,
    SHAPES,
    mini_ade20k,
    mini_coco,
    mini_imagenet,
)

EPOCHS = 2
BATCH_SIZE = 4
# On a CPU a head takes time in proportion to its regions. With these numbers the backbone takes
# more time than the heads.
ROIS_PER_IMAGE = 16
PROPOSALS_PER_IMAGE = 200
DETECTIONS_PER_IMAGE = 20
# Two-stage DETRs choose their queries from the positions of all maps, fewer than 300 at 112x112.
QUERIES_PER_IMAGE = 100

# Keys of sizes in pixels in OpenMMLab's transforms and data preprocessors.
SIZE_KEYS = (
    'scale',
    'scales',
    'img_scale',
    'img_scales',
    'crop_size',
    'size',
    'border',
    'random_size_range',
    'stride',
)


def from_scratch(cfg: Config) -> Config:
    """Return a config that starts from random weights.

    Removes each ``init_cfg`` of type ``Pretrained``, ``pretrained`` and ``load_from``. Every
    parameter must then be trained, so no stage is frozen and batch norms use batch statistics.

    Args:
        cfg (Config): Any OpenMMLab config; it is not changed.
    """
    cfg = copy.deepcopy(cfg)
    cfg.load_from = None
    for node in list(dicts(cfg.model)):
        if is_pretrained(node.get('init_cfg')):
            del node.init_cfg
        if node.get('pretrained') is not None:
            node.pretrained = None
        if 'frozen_stages' in node:
            node.frozen_stages = -1
        if 'norm_eval' in node:
            node.norm_eval = False
    return cfg


def use_mini(cfg: Config) -> Config:
    """Return a config that trains the same model on a mini dataset, in minutes on a CPU.

    Losses and pipelines stay. These change:

    - the datasets and their metrics: ``mini_coco`` for detection, instance and panoptic
      segmentation and keypoints, ``mini_ade20k`` for semantic segmentation, ``mini_imagenet`` for
      classification;
    - the number of classes;
    - image scales and crops: the shorter side of test images is 128 pixels, and the other sizes
      are close to it;
    - the numbers of sampled regions, proposals, queries and detections;
    - the batch size, the length of the schedule (warm-up and steps in proportion) and the learning
      rate;
    - the weights, which are random as in :func:`from_scratch`, and the seed, which is fixed.

    Args:
        cfg (Config): Any config for mmdet, mmseg, mmpretrain or mmpose; it is not changed.

    Raises:
        ValueError: If there is no mini dataset for the config's task.
    """
    cfg = from_scratch(cfg)
    classes: tuple[str, ...] = SHAPES
    if library(cfg) == 'mmseg':
        classes = (*SHAPES, GROUND)
        _use_ade20k(cfg, classes)
    elif library(cfg) == 'mmdet':
        _use_coco(cfg, classes)
    elif library(cfg) == 'mmpretrain' and type_name(cfg.model).endswith('ImageClassifier'):
        _use_imagenet(cfg, classes)
    elif library(cfg) == 'mmpose' and type_name(cfg.model.head).endswith('HeatmapHead'):
        _use_keypoints(cfg)
    else:
        raise ValueError(
            '--mini has data for detection, instance and panoptic segmentation '
            '(mmdet), semantic segmentation (mmseg), classification (mmpretrain) and '
            f'top-down heatmaps of keypoints (mmpose), and none for {cfg.filename}'
        )
    _shrink_images(cfg)
    set_num_classes(cfg.model, len(classes))
    _sample_fewer_regions(cfg.model)
    _shorten_schedule(cfg)
    cfg.setdefault('randomness', dict(seed=0))
    return cfg


def replace_dataset(dataset: ConfigDict, **fields: Any) -> None:
    """Change a dataset to another one, keeping its pipeline and filter."""
    kept = {key: dataset[key] for key in ('pipeline', 'filter_cfg', 'test_mode') if key in dataset}
    dataset.clear()
    dataset.update(kept, **fields)


def _evaluate(cfg: Config, metric: dict) -> None:
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None:
            cfg[key] = dict(metric)


def _use_coco(cfg: Config, things: tuple[str, ...]) -> None:
    root = f'{mini_coco()}/'
    panoptic = 'LoadPanopticAnnotations' in loader_types(cfg)
    kind = 'panoptic' if panoptic else 'instances'
    classes = (*things, GROUND) if panoptic else things
    metainfo = dict(classes=classes, palette=PALETTE[: len(classes)])
    if panoptic:
        metainfo.update(thing_classes=things, stuff_classes=(GROUND,))
    for key in DATALOADERS:
        split = 'train2017' if key == 'train_dataloader' else 'val2017'
        for dataset in list(datasets_of(cfg.get(key))):
            prefix = dict(img=f'{split}/')
            if 'seg' in dataset.get('data_prefix', {}):
                maps = 'annotations/panoptic_' if panoptic else 'stuffthingmaps/'
                prefix['seg'] = f'{maps}{split}/'
            replace_dataset(
                dataset,
                type=f'mmdet.Coco{"Panoptic" if panoptic else ""}Dataset',
                data_root=root,
                ann_file=f'annotations/{kind}_{split}.json',
                data_prefix=prefix,
                metainfo=metainfo,
            )
    masks = panoptic or any(node.get('with_mask') for node in dicts(cfg.get('train_dataloader')))
    objects = dict(
        type='mmdet.CocoMetric',
        ann_file=f'{root}annotations/instances_val2017.json',
        metric=['bbox', 'segm'] if masks else ['bbox'],
    )
    whole = dict(
        type='mmdet.CocoPanopticMetric',
        ann_file=f'{root}annotations/panoptic_val2017.json',
        seg_prefix=f'{root}annotations/panoptic_val2017/',
    )
    for key in ('val_evaluator', 'test_evaluator'):
        if cfg.get(key) is not None and not panoptic:
            cfg[key] = objects
        elif cfg.get(key) is not None:
            evaluates_objects = 'CocoMetric' in map(type_name, dicts(cfg[key]))
            cfg[key] = [whole, objects] if evaluates_objects else whole


def _use_ade20k(cfg: Config, classes: tuple[str, ...]) -> None:
    root = str(mini_ade20k())
    for key in DATALOADERS:
        split = 'training' if key == 'train_dataloader' else 'validation'
        for dataset in list(datasets_of(cfg.get(key))):
            # mmseg's ADE20KDataset takes no classes but its own 150.
            replace_dataset(
                dataset,
                type='mmseg.BaseSegDataset',
                data_root=root,
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                reduce_zero_label=True,
                metainfo=dict(classes=classes, palette=PALETTE),
            )
    for node in dicts([cfg.get(key) for key in DATALOADERS]):
        if node.get('reduce_zero_label') is not None:
            node.reduce_zero_label = True
    _evaluate(cfg, dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']))


def _use_keypoints(cfg: Config) -> None:
    root = f'{mini_coco()}/'
    keypoints = {
        i: dict(
            name=name,
            id=i,
            color=PALETTE[i],
            type='lower' if name == 'bottom' else 'upper',
            swap=dict(left='right', right='left').get(name, ''),
        )
        for i, name in enumerate(KEYPOINTS)
    }
    metainfo = dict(
        dataset_name='mini_coco',
        keypoint_info=keypoints,
        skeleton_info={},
        joint_weights=[1.0] * len(KEYPOINTS),
        sigmas=[0.05] * len(KEYPOINTS),
    )
    for key in DATALOADERS:
        split = 'train2017' if key == 'train_dataloader' else 'val2017'
        for dataset in list(datasets_of(cfg.get(key))):
            replace_dataset(
                dataset,
                type='mmpose.BaseCocoStyleDataset',
                data_root=root,
                data_mode='topdown',
                ann_file=f'annotations/person_keypoints_{split}.json',
                data_prefix=dict(img=f'{split}/'),
                metainfo=metainfo,
            )
    cfg.model.head.out_channels = len(KEYPOINTS)
    _evaluate(
        cfg,
        dict(type='mmpose.CocoMetric', ann_file=f'{root}annotations/person_keypoints_val2017.json'),
    )


def _use_imagenet(cfg: Config, classes: tuple[str, ...]) -> None:
    root = str(mini_imagenet())
    for key in DATALOADERS:
        split = 'train' if key == 'train_dataloader' else 'val'
        for dataset in list(datasets_of(cfg.get(key))):
            replace_dataset(
                dataset, type='mmpretrain.CustomDataset', data_root=root, data_prefix=split
            )
    for node in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if node is not None:
            node.num_classes = len(classes)
    _evaluate(cfg, dict(type='mmpretrain.Accuracy'))


def _shrink_images(cfg: Config) -> None:
    scales = [node.scale for node in dicts(cfg.get('val_dataloader')) if 'scale' in node]
    scale = scales[0] if scales else IMAGE_SIZE
    whole = scale if isinstance(scale, int) else min(scale)

    def shrink(size: Any) -> Any:
        if isinstance(size, (list, tuple)):
            return type(size)(map(shrink, size))
        if not isinstance(size, int) or abs(size) < 32:  # a ratio, stride or count
            return size
        # The fourth root narrows the range of sizes: two epochs are too short to learn objects of
        # very different sizes, as with scales of 480 to 800 and a crop. A negative size is cut
        # off a mosaic of images and must stay half an image.
        return round(IMAGE_SIZE * ((size / whole) ** 0.25 if size > 0 else size / whole))

    sized = [
        *(cfg.get(key) for key in DATALOADERS),
        cfg.get('tta_pipeline'),
        cfg.get('custom_hooks'),
        cfg.model.get('data_preprocessor'),
    ]
    # The only sizes in pixels in mmseg's test_cfg are those of its sliding window.
    for node in [*dicts(sized), cfg.model.get('test_cfg') or ConfigDict()]:
        node.update({key: shrink(node[key]) for key in SIZE_KEYS if key in node})


def set_num_classes(node: Any, classes: int, of_head: tuple[int, int] | None = None) -> None:
    """Set the number of classes of every head and shorten lists of class weights.

    Args:
        node (Any): A part of a config.
        classes (int): Number of classes; for a head with things and stuff, of the things. The
            ground is then its one kind of stuff.
        of_head (tuple[int, int], optional): Old and new number of classes of the enclosing head.
            Default: none encloses the part.
    """
    if isinstance(node, (list, tuple)):
        for child in node:
            set_num_classes(child, classes, of_head)
    if not isinstance(node, dict):
        return
    for key in ('num_things_classes', 'num_classes'):
        if isinstance(node.get(key), int):
            of_head, node[key] = (node[key], classes), classes
    if of_head is not None and node.get('num_stuff_classes'):
        of_head = (of_head[0] + node['num_stuff_classes'], classes + 1)
        node['num_stuff_classes'] = 1
    weights = node.get('class_weight')
    if isinstance(weights, (list, tuple)) and of_head is not None and len(weights) >= of_head[0]:
        old, new = of_head
        node['class_weight'] = [*weights[:new], *weights[old:]]  # the last may be of 'no object'
    for key, child in node.items():
        if key != 'rpn_head':  # it separates objects from background, without classes
            set_num_classes(child, classes, of_head)


def _sample_fewer_regions(model: ConfigDict) -> None:
    for node in dicts((model.get('train_cfg') or {}).get('rcnn')):
        if 'num' in node.get('sampler', {}):
            node.sampler.num = min(node.sampler.num, ROIS_PER_IMAGE)
    for node in dicts(model):  # Sparse R-CNN learns its regions and samples none
        if 'num_proposals' in node:
            node.num_proposals = min(node.num_proposals, ROIS_PER_IMAGE)
    if model.get('as_two_stage') and 'num_queries' in model:
        model.num_queries = min(model.num_queries, QUERIES_PER_IMAGE)
        model.test_cfg.max_per_img = min(model.test_cfg.max_per_img, QUERIES_PER_IMAGE)
    limits = [
        ((model.get('train_cfg') or {}).get('rpn_proposal'), PROPOSALS_PER_IMAGE),
        ((model.get('test_cfg') or {}).get('rpn'), PROPOSALS_PER_IMAGE),
        ((model.get('test_cfg') or {}).get('rcnn'), DETECTIONS_PER_IMAGE),
    ]
    for node, limit in limits:
        if node and 'max_per_img' in node:
            node.max_per_img = min(node.max_per_img, limit)


def _shorten_schedule(cfg: Config) -> None:
    iterations = EPOCHS * math.ceil(NUM_IMAGES['train'] / BATCH_SIZE)
    by_epoch = 'max_epochs' in cfg.train_cfg
    length = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    end = EPOCHS if by_epoch else iterations
    cfg.train_cfg.update({'max_epochs' if by_epoch else 'max_iters': end, 'val_interval': end})
    cfg.train_cfg.pop('dynamic_intervals', None)
    squeeze_schedulers(cfg, iterations, length if by_epoch else None)

    for node in dicts(cfg.train_dataloader):
        if 'times' in node:  # RepeatDataset
            node.times = 1
    cfg.train_dataloader.batch_size = BATCH_SIZE
    if 'auto_scale_lr' in cfg:
        cfg.auto_scale_lr.base_batch_size = BATCH_SIZE
    for key in DATALOADERS:
        if cfg.get(key) is not None:
            cfg[key].update(num_workers=0, persistent_workers=False)
            cfg[key].pop('prefetch_factor', None)

    optimizer = cfg.optim_wrapper.optimizer
    optimizer.lr = 0.01 if type_name(optimizer) == 'SGD' else 3e-4
    if type_name(optimizer) in ('Adam', 'AdamW'):
        optimizer.fused = True  # saves a third of the time of a step on a CPU
    cfg.default_hooks.logger.interval = 4
    cfg.default_hooks.checkpoint.update(interval=end, max_keep_ckpts=1)


def squeeze_schedulers(cfg: Config, iterations: int, epochs: int | None) -> None:
    """Shorten the learning rate schedule, in proportion, and count it in iterations.

    Args:
        cfg (Config): The config, changed in place.
        iterations (int): New length.
        epochs (int or None): Old length in epochs. None: it was given in iterations.
    """
    schedulers = list(dicts(cfg.get('param_scheduler')))
    counts_epochs = [s.get('by_epoch', True) for s in schedulers]
    in_iterations = [s for s, yes in zip(schedulers, counts_epochs) if not yes]
    warm_ups = [
        s.end
        for s in in_iterations
        if type_name(s) in ('LinearLR', 'ConstantLR') and s.get('begin', 0) == 0
    ]
    span = max((s.get('end', 0) for s in in_iterations), default=0)

    def squeeze(time: Any, in_epochs: bool) -> Any:
        if isinstance(time, (list, tuple)):
            return [squeeze(t, in_epochs) for t in time]
        if time in warm_ups and not in_epochs:
            return min(time, iterations // 10)  # in proportion it may be less than one iteration
        return round(time * iterations / (epochs if in_epochs else span))

    for scheduler, in_epochs in zip(schedulers, counts_epochs):
        for key in ('begin', 'end', 'milestones', 'T_max', 'total_iters', 'step_size', 'periods'):
            if key in scheduler:
                scheduler[key] = squeeze(scheduler[key], in_epochs)
        scheduler.by_epoch = False
        scheduler.pop('convert_to_iter_based', None)
