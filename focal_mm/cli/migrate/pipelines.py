"""Pipelines of mmdet 2 and mmseg 0, and the data preprocessor that does a part of their work."""

from dataclasses import dataclass, field
from typing import Any

from .report import Report

# Old names of arguments, for every step.
_RENAMED = dict(
    file_client_args='backend_args',
    flip_ratio='prob',
    shift_ratio='prob',
    bbox_clip_border='clip_object_border',
)
# Steps that keep bbox_clip_border.
_CLIPPING = (
    *('RandomCrop', 'Mosaic', 'MixUp', 'RandomAffine', 'MinIoURandomCrop', 'RandomCenterCropPad'),
    'CopyPaste',
)
_RENAMED_TYPES = dict(
    EqualizeTransform='Equalize',
    BrightnessTransform='Brightness',
    ContrastTransform='Contrast',
    ColorTransform='Color',
    LoadImageFromWebcam='mmdet.LoadImageFromNDArray',
)
# Steps without a successor: the packing step and the data preprocessor do their work.
_OBSOLETE = ('DefaultFormatBundle', 'ImageToTensor', 'ToTensor', 'Transpose', 'ToDataContainer')
_PACKED = {
    *('img', 'gt_bboxes', 'gt_labels', 'gt_masks', 'gt_semantic_seg', 'gt_bboxes_ignore'),
    'proposals',
}
_TEST_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
# Names in the metadata of an image; None for what no longer exists.
_META = dict(filename='img_path', ori_filename=None, img_norm_cfg=None)
_PACKERS = dict(mmdet='PackDetInputs', mmseg='PackSegInputs')


@dataclass
class Pipelines:
    """Translates the pipelines of one config.

    Attributes:
        library (str): ``'mmdet'`` or ``'mmseg'``.
        report (Report): What is not understood is added.
        preprocessor (dict): Settings of the data preprocessor that the steps ask for.
        annotations (dict, optional): Step that loads the training annotations.
        tta (list[dict], optional): Pipeline of the test-time augmentation, if there is one.
    """

    library: str
    report: Report
    preprocessor: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, Any] | None = None
    tta: list[dict] | None = None

    def train(self, steps: list[dict], path: str) -> list[dict]:
        """Translate a training pipeline.

        Args:
            steps (list[dict]): Old steps.
            path (str): Key of the pipeline, for the report.
        """
        new = self._steps(steps, path, training=True)
        self.annotations = next(
            (step for step in new if step['type'] == 'LoadAnnotations'), self.annotations
        )
        return new

    def test(self, steps: list[dict], path: str, masks: bool) -> list[dict]:
        """Translate a pipeline of validation or testing.

        Args:
            steps (list[dict]): Old steps.
            path (str): Key of the pipeline, for the report.
            masks (bool): Load masks, for a metric of masks.
        """
        flat = []
        for i, step in enumerate(steps):
            if step['type'] == 'MultiScaleFlipAug':
                flat += self._without_augmentation(dict(step), f'{path}[{i}]', steps[:i])
            else:
                flat.append(step)
        new = self._steps(flat, path, training=False)
        packer: dict[str, Any] = dict(type=_PACKERS[self.library])
        if self.library == 'mmdet':
            packer['meta_keys'] = _TEST_META
        packed = new[-1] if new and new[-1]['type'].startswith('Pack') else packer
        new = [step for step in new if not step['type'].startswith('Pack')]
        if self.annotations and not any(step['type'] == 'LoadAnnotations' for step in new):
            new.append(self._test_annotations(masks))
        if self.library == 'mmdet' and 'meta_keys' not in packed:
            packed = packer
        return [*new, packed]

    def _test_annotations(self, masks: bool) -> dict[str, Any]:
        annotations = dict(self.annotations or dict(type='LoadAnnotations'))
        if self.library == 'mmdet':
            annotations['with_mask'] = masks
            annotations.pop('with_seg', None)
        return annotations

    def data_preprocessor(self) -> dict[str, Any]:
        """Return the data preprocessor, after all pipelines."""
        settings = dict(self.preprocessor)
        if self.library == 'mmseg':
            settings.setdefault('pad_val', 0)
            settings.setdefault('seg_pad_val', 255)
            return dict(type='SegDataPreProcessor', **settings)
        annotations = self.annotations or {}
        if annotations.get('with_mask'):
            settings['pad_mask'] = True
        if annotations.get('with_seg'):
            settings['pad_seg'] = True
        return dict(type='DetDataPreprocessor', **settings)

    def _without_augmentation(
        self, step: dict[str, Any], path: str, loading: list[dict]
    ) -> list[dict]:
        """Return the steps for one scale without a flip; keep the rest for ``tta``."""
        step.pop('type')
        scales, flips = step.pop('img_scale', None), step.pop('flip', False)
        scales = scales if isinstance(scales, list) else [scales]
        ratios = step.pop('img_ratios', None) or [1.0]
        ratios = ratios if isinstance(ratios, (list, tuple)) else [ratios]
        factor = step.pop('scale_factor', None)
        directions = step.pop('flip_direction', 'horizontal')
        directions = [directions] if isinstance(directions, str) else list(directions)
        inner = [dict(child) for child in step.pop('transforms')]
        self.report.leave_out(path, step)
        resizes = [
            dict(scale=tuple(int(side * ratio) for side in scale))
            for scale in scales
            if scale
            for ratio in ratios
        ]
        factors = factor if isinstance(factor, (list, tuple)) else [factor]
        resizes += [dict(scale_factor=value) for value in factors if value is not None]
        index = ratios.index(1.0) if 1.0 in ratios else 0
        new = []
        for child in inner:
            if child['type'] == 'RandomFlip':
                continue
            if child['type'] == 'Resize' and resizes and 'img_scale' not in child:
                child = dict(child, **resizes[index])
                child.setdefault('keep_ratio', True)
            new.append(child)
        if len(resizes) > 1 or flips:
            keep = next((c.get('keep_ratio', True) for c in inner if c['type'] == 'Resize'), True)
            self.tta = self._tta(loading, resizes, directions if flips else [], keep)
            self.report.change(
                f'{path}: mmdet 2 and mmseg 0 always test with these scales and flips; now '
                'focal-mm test does with --tta, and without it takes one scale and no flip'
            )
        return new

    def _tta(
        self, loading: list[dict], resizes: list[dict], directions: list[str], keep: bool
    ) -> list[dict]:
        packer: dict[str, Any] = dict(type=_PACKERS[self.library])
        if self.library == 'mmdet':
            packer['meta_keys'] = (*_TEST_META, 'flip', 'flip_direction')
        annotations = (
            dict(type='LoadAnnotations', with_bbox=True)
            if self.library == 'mmdet'
            else self._test_annotations(masks=False)
        )
        flips = [dict(type='RandomFlip', prob=1.0, direction=way) for way in directions]
        return [
            *self._steps(loading, '', training=False),
            dict(
                type='TestTimeAug',
                transforms=[
                    [dict(type='Resize', keep_ratio=keep, **resize) for resize in resizes],
                    [*flips, dict(type='RandomFlip', prob=0.0)],
                    [annotations],
                    [packer],
                ],
            ),
        ]

    def _steps(self, steps: list[dict], path: str, training: bool) -> list[dict]:
        new, normalized = [], False
        for i, step in enumerate(steps):
            if not isinstance(step, dict) or not isinstance(step.get('type'), str):
                raise ValueError(f'{path}[{i}]: not a step of a pipeline: {step!r}')
            here, step = f'{path}[{i}]', dict(step)
            kind = step.pop('type')
            if kind == 'Normalize':
                self._normalize(step, here)
                normalized = True
            elif kind == 'Pad':
                new += self._pad(step, here, normalized, training)
            elif kind == 'Collect':
                new.append(self._packer(step, here))
            elif kind not in _OBSOLETE:
                new.append(self._step(kind, step, here, training))
        return new

    def _step(self, kind: str, step: dict[str, Any], path: str, training: bool) -> dict[str, Any]:
        if kind in ('AutoAugment', 'RandomChoice'):
            policies = step.pop('policies', None) or step.pop('transforms')
            policies = [
                self._steps(policy, f'{path}.policies[{i}]', training)
                for i, policy in enumerate(policies)
            ]
            return dict(type='RandomChoice', transforms=policies, **step)
        if kind == 'Resize' and not {'scale', 'scale_factor'} & {*step}:
            return self._resize(step, path)
        if kind == 'OneOf':  # of old mmseg, a list of alternatives
            return dict(
                type='RandomChoice',
                transforms=[
                    self._steps([child], path, training) for child in step.pop('transforms')
                ],
            )
        if kind in ('Rotate', 'Shear', 'Translate') and 'level' in step:
            return self._geometry(kind, step, path)
        if kind == 'Albu':
            step.pop('update_pad_shape', None)
            boxes = step.get('bbox_params')
            if boxes and 'gt_labels' in boxes.get('label_fields', ()):
                fields = ['gt_bboxes_labels', 'gt_ignore_flags']
                step['bbox_params'] = dict(boxes, label_fields=fields)
            return dict(type='Albu', **step)
        renamed = {}
        for key, value in step.items():
            keeps = key == 'bbox_clip_border' and kind in _CLIPPING
            renamed[key if keeps else _RENAMED.get(key, key)] = value
        if kind in ('Mosaic', 'MixUp') and 'img_scale' in renamed:
            renamed['img_scale'] = tuple(renamed['img_scale'][::-1])  # now (width, height)
        if kind == 'LoadAnnotations' and renamed.get('with_seg') is False:
            renamed.pop('with_seg')
        if kind == 'RandomFlip' and renamed.get('prob', 0) is None:
            renamed['prob'] = 0.0
        return dict(type=_RENAMED_TYPES.get(kind, kind), **renamed)

    def _resize(self, step: dict[str, Any], path: str) -> dict[str, Any]:
        scale = step.pop('img_scale', None)
        mode, ratios = step.pop('multiscale_mode', 'range'), step.pop('ratio_range', None)
        step.pop('override', None)  # the second size of a policy; now every size replaces the first
        options: dict[str, Any] = dict(keep_ratio=step.pop('keep_ratio', True))
        for key in ('bbox_clip_border', 'backend', 'interpolation'):
            if key in step:
                options[_RENAMED.get(key, key)] = step.pop(key)
        if scale is None:
            self.report.leave_out(path, dict(step, ratio_range=ratios, type='Resize'))
            return dict(type='Resize', scale_factor=1.0, **options)
        scales = [tuple(s) for s in scale] if isinstance(scale[0], (list, tuple)) else [scale]
        self.report.leave_out(path, step)
        if ratios is not None:
            return dict(type='RandomResize', scale=scales[0], ratio_range=ratios, **options)
        if len(scales) == 1:
            return dict(type='Resize', scale=scales[0], **options)
        if mode == 'value':
            return dict(type='RandomChoiceResize', scales=scales, **options)
        return dict(type='RandomResize', scale=scales, **options)

    def _geometry(self, kind: str, step: dict[str, Any], path: str) -> dict[str, Any]:
        new = dict(level=step.pop('level'), prob=step.pop('prob', 0.5))
        if kind != 'Rotate':
            kind += 'X' if step.pop('direction', 'horizontal') == 'horizontal' else 'Y'
        self.report.leave_out(path, step)
        return dict(type=kind, **new)

    def _normalize(self, step: dict[str, Any], path: str) -> None:
        settings = dict(
            mean=list(step.pop('mean')),
            std=list(step.pop('std')),
            bgr_to_rgb=step.pop('to_rgb', True),
        )
        self.report.leave_out(path, step)
        known = {key: self.preprocessor.get(key, value) for key, value in settings.items()}
        if known != settings:
            self.report.leave_out(path, settings)  # one preprocessor serves training and testing
            return
        self.preprocessor.update(settings)

    def _pad(
        self, step: dict[str, Any], path: str, normalized: bool, training: bool
    ) -> list[dict[str, Any]]:
        divisor, size = step.pop('size_divisor', None), step.get('size')
        value = step.get('pad_val', 0)
        if divisor is not None:
            settings = dict(pad_size_divisor=divisor)
            if self.library == 'mmseg':
                settings = dict(size_divisor=divisor)
                if not training:
                    self.preprocessor['test_cfg'] = settings
                    return []
            value = value.get('img', 0) if isinstance(value, dict) else value
            if value != 0:
                settings['pad_val' if self.library == 'mmseg' else 'pad_value'] = value
            self.preprocessor.update(settings)
            step.pop('pad_val', None)
            if 'seg_pad_val' in step and self.library == 'mmseg':
                self.preprocessor['seg_pad_val'] = step.pop('seg_pad_val')
            self.report.leave_out(path, {key: v for key, v in step.items() if key != 'size'})
            return []
        if self.library == 'mmseg' and training and size is not None:
            self.preprocessor.update(
                size=tuple(size),
                pad_val=step.pop('pad_val', 0),
                seg_pad_val=step.pop('seg_pad_val', 255),
            )
            step.pop('size')
            self.report.leave_out(path, step)
            return []
        if normalized and not isinstance(value, dict) and value == 0 and self.preprocessor:
            # Zeros of a normalized image are pixels of the mean, in the channel order of the file.
            mean = self.preprocessor['mean']
            mean = mean[::-1] if self.preprocessor['bgr_to_rgb'] else mean
            step['pad_val'] = dict(img=tuple(round(channel) for channel in mean))
        return [dict(type='Pad', **step)]

    def _packer(self, step: dict[str, Any], path: str) -> dict[str, Any]:
        keys = set(step.pop('keys'))
        if unknown := keys - _PACKED:
            self.report.leave_out(path, dict(keys=sorted(unknown)))
        packer: dict[str, Any] = dict(type=_PACKERS[self.library])
        if meta := step.pop('meta_keys', None):
            names = [_META.get(key, key) for key in meta]
            packer['meta_keys'] = tuple(name for name in names if name)
        self.report.leave_out(path, step)
        return packer
