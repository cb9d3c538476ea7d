"""Data loaders and metrics from the ``data`` and ``evaluation`` of mmdet 2 and mmseg 0."""

import ast
import json
import os.path
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

from .pipelines import Pipelines
from .report import Report

_WRAPPERS = ('RepeatDataset', 'ClassBalancedDataset', 'ConcatDataset', 'MultiImageMixDataset')
_RENAMED_TYPES = dict(CustomDataset='BaseSegDataset')
_PATHS = ('ann_file', 'img_prefix', 'seg_prefix', 'proposal_file', 'split', 'img_dir', 'ann_dir')
# The paths of a dataset, and their names in data_prefix.
_PREFIXES = dict(img_prefix='img', seg_prefix='seg', img_dir='img_path', ann_dir='seg_map_path')


@dataclass
class Dataset:
    """What a class of datasets in the old code's own files says.

    Attributes:
        base (str): Name of the class that it extends, and which the installed library has.
        classes (tuple[str, ...], optional): Names of its classes.
        palette (list, optional): Color of each class.
        methods (list[str]): Methods of its own, which are not translated.
        file (Path, optional): Where it is.
    """

    base: str
    classes: tuple[str, ...] | None = None
    palette: list | None = None
    methods: list[str] = field(default_factory=list)
    file: Path | None = None


@dataclass
class Data:
    """Translates the data of one config.

    Attributes:
        library (str): ``'mmdet'`` or ``'mmseg'``.
        folder (Path): Folder of the old config; the classes of the old code's datasets are looked
            for in the project that it is in.
        datasets (Registry): The library's datasets of today.
        report (Report): What is not understood is added.
        root (str): The config's ``data_root``.
        classes (tuple[str, ...], optional): Names of the classes, where they are the config's own.
        pipelines (Pipelines): The translator of pipelines.
    """

    library: str
    folder: Path
    datasets: Registry
    report: Report
    root: str = ''
    classes: tuple[str, ...] | None = None
    pipelines: Pipelines = field(init=False)

    def __post_init__(self) -> None:
        self.pipelines = Pipelines(self.library, self.report)

    def translate(
        self, settings: dict[str, Any], evaluation: dict[str, Any], epochs: bool
    ) -> dict[str, Any]:
        """Take the data out of the settings; return data loaders and evaluators.

        Args:
            settings (dict): Old settings.
            evaluation (dict): Old ``evaluation``; what is understood is taken out.
            epochs (bool): Whether training counts epochs, else iterations.
        """
        data = dict(settings.pop('data', None) or {})
        if 'train' not in data:
            raise ValueError('data.train: missing; the config has no training data')
        self.root = settings.get('data_root') or _first_root(data['train'])
        splits = {split: data.pop(split) for split in ('train', 'val', 'test') if split in data}
        batch = data.pop('imgs_per_gpu', None) or data.pop('samples_per_gpu', 1)
        data.pop('samples_per_gpu', None)
        workers = data.pop('workers_per_gpu', 2)
        loaders = {split: dict(data.pop(f'{split}_dataloader', {})) for split in splits}
        metrics = _as_list(evaluation.pop('metric', None))
        masks = any(name in ('segm', 'proposal_fast_segm') for name in metrics)
        new: dict[str, Any] = {}
        for split, dataset in splits.items():
            own = loaders[split]
            train = split == 'train'
            size = own.pop('samples_per_gpu', batch if train else None)
            if isinstance(dataset, dict) and not train:
                dataset = dict(dataset)
                size = dataset.pop('samples_per_gpu', size)
            loader: dict[str, Any] = dict(
                batch_size=size or 1, num_workers=own.pop('workers_per_gpu', workers)
            )
            loader['persistent_workers'] = (
                own.pop('persistent_workers', data.get('persistent_workers', True))
                and loader['num_workers'] > 0
            )
            if not train and self.library == 'mmdet':
                loader['drop_last'] = False
            kind = 'DefaultSampler' if epochs or not train else 'InfiniteSampler'
            loader['sampler'] = dict(type=kind, shuffle=own.pop('shuffle', train))
            if train and self.library == 'mmdet':
                loader['batch_sampler'] = dict(type='AspectRatioBatchSampler')
            loader['dataset'] = self._dataset(dataset, f'data.{split}', split, masks)
            for key in ('drop_last', 'pin_memory', 'prefetch_factor'):
                if key in own:
                    loader[key] = own.pop(key)
            self.report.leave_out(f'data.{split}_dataloader', own)
            new[f'{split}_dataloader'] = loader
        data.pop('persistent_workers', None)
        self.report.leave_out('data', data)
        for split in ('val', 'test'):
            other = new.get('val_dataloader', new.get('test_dataloader'))
            if other is None:
                raise ValueError('data.val: missing, and there is no data.test either')
            loader = new.setdefault(f'{split}_dataloader', other)
            new[f'{split}_evaluator'] = self._evaluator(loader['dataset'], metrics, evaluation)
        return new

    def _dataset(self, node: Any, path: str, split: str, masks: bool) -> dict[str, Any]:
        if isinstance(node, (list, tuple)):
            parts = [
                self._dataset(part, f'{path}[{i}]', split, masks) for i, part in enumerate(node)
            ]
            return self._concatenated(parts)
        node = dict(node)
        kind = node.get('type', '').rpartition('.')[2]
        if kind in _WRAPPERS:
            for key in ('dataset', 'datasets'):
                if key in node:
                    inner = node.pop(key)
                    translated = self._dataset(inner, f'{path}.{key}', split, masks)
                    if key == 'datasets':
                        translated = translated.get('datasets', [translated])
                    node[key] = translated
            if node.pop('separate_eval', True) is False:
                self.report.leave_out(path, dict(separate_eval=False))
            if 'pipeline' in node:
                node['pipeline'] = self.pipelines.train(node['pipeline'], f'{path}.pipeline')
            self.report.leave_out(
                path, {key: node.pop(key) for key in ('dynamic_scale',) if node.get(key)}
            )
            return node
        several = {key: node[key] for key in _PATHS if isinstance(node.get(key), (list, tuple))}
        if several:
            try:
                values = [*zip(*several.values(), strict=True)]
            except ValueError as error:
                raise ValueError(f'{path}: {", ".join(several)} have unequal lengths') from error
            parts = [{**node, **dict(zip(several, row, strict=True))} for row in values]
            return self._dataset(parts, path, split, masks)
        if not kind:
            raise ValueError(f'{path}: a dataset without a type; a base that sets it is missing')
        return self._leaf(node, path, split, masks)

    def _concatenated(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        if len(parts) == 1:
            return parts[0]
        new: dict[str, Any] = dict(type='ConcatDataset', datasets=parts)
        if self.library == 'mmdet':
            new['ignore_keys'] = ['dataset_type']  # VOC2007 and VOC2012 differ in it alone
        return new

    def _leaf(self, node: dict[str, Any], path: str, split: str, masks: bool) -> dict[str, Any]:
        kind = node.pop('type')
        pipeline = node.pop('pipeline', [])
        own_root = node.pop('data_root', None)
        classes, palette = node.pop('classes', None), node.pop('palette', None)
        known = self._class_of(kind, path)
        prefixes = {
            name: node.pop(old) for old, name in _PREFIXES.items() if node.get(old) is not None
        }
        ann_file = node.pop('ann_file', node.pop('split', None))
        paths = [value for value in (*prefixes.values(), ann_file) if value]
        root = own_root or (self.root if all(map(self._inside, paths)) else '')
        if not own_root and root:
            prefixes = {name: self._below_root(value) for name, value in prefixes.items()}
            ann_file = ann_file and self._below_root(ann_file)
        new: dict[str, Any] = dict(type=known.base)
        if root:
            new['data_root'] = root
        if ann_file is not None:
            new['ann_file'] = ann_file
        if known.base in ('VOCDataset', 'XMLDataset') and 'img' in prefixes:
            prefixes['sub_data_root'] = prefixes.pop('img')
        if prefixes:
            new['data_prefix'] = prefixes
        info = self._metainfo(classes, palette, known, os.path.join(root, ann_file or ''), path)
        if info:
            new['metainfo'] = info
        test = node.pop('test_mode', split != 'train')
        if self.library == 'mmdet':
            empty = node.pop('filter_empty_gt', True)
            if test:
                new['test_mode'] = True
            else:
                new['filter_cfg'] = dict(filter_empty_gt=empty, min_size=node.pop('min_size', 32))
                if known.base == 'VOCDataset':
                    new['filter_cfg']['bbox_min_size'] = 32
        for key in ('file_client_args', 'backend_args'):
            if value := node.pop(key, None):
                new['backend_args'] = value
        for key in ('img_suffix', 'seg_map_suffix', 'reduce_zero_label', 'ignore_index'):
            if key in node:
                new[key] = node.pop(key)
        if proposals := node.pop('proposal_file', None):
            new['proposal_file'] = self._below_root(proposals) if root else proposals
            self.report.change(f'{path}.proposal_file: {proposals} must be written by mmdet 3 anew')
        if node.get('gt_seg_map_loader_cfg', True) is None:
            node.pop('gt_seg_map_loader_cfg')
        self.report.leave_out(path, node)
        where = f'{path}.pipeline'
        new['pipeline'] = (
            self.pipelines.train(pipeline, where)
            if split == 'train'
            else self.pipelines.test(pipeline, where, masks)
        )
        return new

    def _inside(self, path: str) -> bool:
        return bool(self.root) and f'{path}/'.startswith(f'{self.root.rstrip("/")}/')

    def _below_root(self, path: str) -> str:
        return path[len(self.root.rstrip('/')) :].lstrip('/') if self._inside(path) else path

    def _class_of(self, kind: str, path: str) -> Dataset:
        """Return today's class of a dataset, and what the old code says about it."""
        found = find_dataset(self.folder, kind, self.library)
        if self.library == 'mmseg':
            kind = _RENAMED_TYPES.get(kind, kind)
        installed = self.datasets.get(kind)
        if installed is not None:
            if found and found.classes not in (None, installed.METAINFO.get('classes')):
                return replace(found, base=kind)
            return Dataset(kind)
        if found and self.datasets.get(found.base) is not None:
            self.report.leave_out(path, {f'type.{name}': kind for name in found.methods})
            self.report.change(
                f'data: {kind} becomes {found.base} with the classes in {found.file}'
            )
            return found
        self.report.leave_out(path, dict(type=kind))
        base = 'CocoDataset' if self.library == 'mmdet' else 'BaseSegDataset'
        return replace(found, base=base) if found else Dataset(base)

    def _metainfo(
        self, given: Any, palette: Any, known: Dataset, ann_file: str, path: str
    ) -> dict[str, Any]:
        """Return the names of the classes, where they are not those of the class of datasets."""
        classes = given if given is not None else known.classes
        palette = palette if palette is not None else known.palette
        if isinstance(classes, str):
            if not os.path.isfile(classes):
                self.report.leave_out(path, dict(classes=classes))
                classes = None
            else:
                text = Path(classes).read_text(encoding='utf-8')
                classes = [line.strip() for line in text.splitlines() if line.strip()]
        default = self.datasets.get(known.base).METAINFO.get('classes')
        if classes is None and not default:
            classes = _classes_in(ann_file)
        if classes is None:
            return {}
        classes = tuple(classes)
        if self.classes is None:
            self.classes = classes
        info: dict[str, Any] = {} if classes == default else dict(classes=classes)
        if palette and info:
            info['palette'] = [tuple(color) for color in palette]
        return info

    def _evaluator(
        self, dataset: dict[str, Any], metrics: list[str], evaluation: dict[str, Any]
    ) -> dict[str, Any]:
        leaf = next(leaves(dataset))
        if self.library == 'mmseg':
            return dict(type='IoUMetric', iou_metrics=metrics or ['mIoU'])
        kind = leaf['type']
        if kind in ('VOCDataset', 'XMLDataset', 'WIDERFaceDataset'):
            settings: dict[str, Any] = dict(
                metric=metrics[0] if metrics else 'mAP', eval_mode='11points'
            )
            for key in ('iou_thr', 'iou_thrs'):
                if key in evaluation:
                    settings['iou_thrs'] = evaluation[key]
            return dict(type='VOCMetric', **settings)
        ann_file = os.path.join(leaf.get('data_root', ''), leaf.get('ann_file', ''))
        metric = metrics[0] if len(metrics) == 1 else metrics or 'bbox'
        settings = dict(ann_file=ann_file, metric=metric)
        for key in ('classwise', 'proposal_nums', 'iou_thrs', 'metric_items'):
            if evaluation.get(key) is not None:
                settings[key] = evaluation[key]
        lvis = kind in ('LVISDataset', 'LVISV05Dataset', 'LVISV1Dataset')
        return dict(type='LVISMetric' if lvis else 'CocoMetric', **settings)

    def leave_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Report what nothing took out of the old ``evaluation``."""
        for key in ('classwise', 'proposal_nums', 'iou_thrs', 'iou_thr', 'metric_items'):
            if self.library == 'mmdet':
                evaluation.pop(key, None)
        for key in ('by_epoch', 'pre_eval', 'gpu_collect', 'efficient_test', 'broadcast_bn_buffer'):
            evaluation.pop(key, None)  # now all metrics are counted batch by batch
        self.report.leave_out('evaluation', evaluation)


def leaves(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the datasets in wrappers, or a dataset itself."""
    inner = dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else None)
    if inner is None:
        yield dataset
        return
    for part in inner:
        yield from leaves(part)


def find_dataset(folder: Path, kind: str, library: str) -> Dataset | None:
    """Read a class of datasets in the old project's ``mmdet/datasets`` or ``mmseg/datasets``.

    The files are parsed and not run.

    Args:
        folder (Path): Folder of the config, in the project or below it.
        kind (str): Name of the class.
        library (str): ``'mmdet'`` or ``'mmseg'``.
    """
    for parent in [folder.resolve(), *folder.resolve().parents]:
        files = sorted((parent / library / 'datasets').glob('*.py'))
        if files:
            break
    else:
        return None
    classes = {}
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding='utf-8', errors='replace'))
        except SyntaxError:
            continue
        classes.update({n.name: (n, file) for n in tree.body if isinstance(n, ast.ClassDef)})
    found = Dataset(kind)
    while found.base in classes:
        node, file = classes[found.base]
        found.file = found.file or file
        for statement in node.body:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    name = ast.unparse(target)
                    if name == 'CLASSES' and found.classes is None:
                        value = _literal(statement.value)
                        found.classes = tuple(value) if value else None
                    if name == 'PALETTE' and found.palette is None:
                        found.palette = _literal(statement.value)
            elif isinstance(statement, ast.FunctionDef) and found.base not in _COMMON:
                found.methods.append(statement.name)
        bases = [ast.unparse(base) for base in node.bases]
        if found.base in _COMMON or not bases:
            break
        found.base = bases[0]
    return found if found.file else None


# Classes of mmdet 2 and mmseg 0 that have a successor of the same kind.
_COMMON = ('CocoDataset', 'VOCDataset', 'XMLDataset', 'CustomDataset', 'LVISV1Dataset')


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _classes_in(ann_file: str) -> tuple[str, ...] | None:
    """Return the names in a COCO file, by their ids, if it is there."""
    if not ann_file.endswith('.json') or not os.path.isfile(ann_file):
        return None
    content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    categories = sorted(content.get('categories', ()), key=lambda category: category['id'])
    return tuple(category['name'] for category in categories) or None


def _first_root(node: Any) -> str:
    while isinstance(node, (list, dict)):
        if isinstance(node, dict) and 'dataset' not in node and 'datasets' not in node:
            return node.get('data_root') or ''
        node = node[0] if isinstance(node, list) else node.get('dataset', node.get('datasets'))
    return ''


def _as_list(value: Any) -> list:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
