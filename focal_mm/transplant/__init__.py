"""A backbone of focal_mm in place of any other: :func:`use_backbone`, ``--backbone`` of the tools.

Nothing here knows a detector by its name. The old backbone is built on PyTorch's meta device, which
computes shapes alone, and so are the necks and heads that read its maps. Which maps they read
follows from gradients; which of their settings are channels of these maps follows from the first
layer that the new maps do not fit. What cannot be made to fit is refused.
"""

import difflib
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.base import StagedBackbone
from ..config import dicts, is_pretrained, type_name
from ..weights import ZOO, Weights
from .differences import differences
from .settings import (
    heads,
    indexed,
    listed,
    map_channels,
    parts_with_backbone,
    probed_settings,
    replace_settings,
    set_channels,
    set_each,
    set_inputs,
    share_map,
)
from .tracing import NESTED, Map, MisfitError, Trace, all_trained, run_part

__all__ = ['use_backbone']

# ImageNet's mean and standard deviation of R, G and B, with which all published weights were
# trained.
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Drop path of the last block in detection: the FocalNet paper's for 12 epochs and for 36, its own
# for each size; the Focal Transformer paper's for both. MixFormer keeps that of ImageNet.
_DROP_PATH = {
    'FocalNet': dict(
        tiny=(0.1, 0.3), small=(0.2, 0.5), base=(0.3, 0.5), large=(0.3, 0.3), xlarge=(0.3, 0.3)
    )
    | dict(huge=(0.3, 0.3)),
    'FocalTransformer': dict(tiny=(0.2, 0.2), small=(0.3, 0.3), base=(0.5, 0.5), large=(0.5, 0.5)),
}
_DROP_PATH_IN_SEGMENTATION = 0.3  # of Swin's code, which both papers follow
# AdamW as in the papers' detectors and segmentors, for 16 images a step.
_ADAMW = dict(
    detection=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    segmentation=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
_IMAGES = 16
# Options of optimizer constructors that give each layer of one architecture a learning rate.
_LAYER_DECAY = ('decay_rate', 'decay_type', 'num_layers', 'layer_decay_rate')
_CONSTRUCTORS = r'(LearningRateDecay|LayerDecay).*Constructor'
_DILATION = ('strides', 'dilations', 'multi_grid', 'contract_dilation')
_ATTEMPTS = 10  # settings of one neck or head that may have to change
_SIZES = ('tiny', 'small', 'base', 'large', 'xlarge', 'huge')
_TABLE = 'relative_position_bias_table'
_OTHERS = ('absolute_pos_embed',)  # of Swin's configs, which mostly have no such parameter
_NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)


def use_backbone(config: Config | str | Path, name: str) -> Config:
    """Put a published backbone of focal_mm into a config of mmdet, mmseg, mmpretrain or mmpose.

    Every ``backbone`` of the model is replaced, and what depends on it: the channels and indices
    in necks and heads, the normalization of images, the optimizer's options, and checkpoints of the
    old network. Each change is printed. docs/detectors.md says which configs work.

    Args:
        config (Config, str or Path): A config, changed in place; or a file, or ``PACKAGE::PATH``,
            as ``'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'``.
        name (str): A published checkpoint, as ``'focalnet_tiny_lrf_in1k'``. The weights of the
            backbone in a published detector or segmentor can be taken, too.

    Returns:
        Config: The config.

    Raises:
        ValueError: If there is no such checkpoint, or the model has no place for the backbone. The
            config is then unchanged.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    entry = _find(name)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{cfg.filename}: no model in this config, so no backbone to replace')
    new = deepcopy(cfg._cfg_dict)
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope')),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # of old arguments, which are replaced
        notes = _Transplant(new, entry, Path(cfg.filename or 'this config').name).run()
    for line in [*differences(cfg._cfg_dict, new), *notes]:
        print_log(line)
    cfg._cfg_dict.clear()
    cfg._cfg_dict.update(new)
    return cfg


def _find(name: str) -> Weights:
    name = name.removeprefix('focal://')
    if name not in ZOO:
        near = difflib.get_close_matches(name, ZOO, n=4, cutoff=0.4)
        hint = f'near it: {", ".join(near)}' if near else '`focal-mm weights list` has all'
        raise ValueError(f'--backbone {name}: no published weights have this name; {hint}')
    if ZOO[name].refused:
        raise ValueError(f'--backbone {name}: {ZOO[name].refused}')
    return ZOO[name]


class _Transplant:
    """The work of :func:`use_backbone` on a copy of a config.

    Args:
        cfg (ConfigDict): The copy.
        entry (Weights): Weights of the new backbone.
        file (str): Name of the config, for errors.
    """

    def __init__(self, cfg: ConfigDict, entry: Weights, file: str) -> None:
        self.cfg: Any = cfg
        self.entry, self.file = entry, file
        self.notes: list[str] = []
        self.backbone = dict(type=entry.backbone, arch=entry.arch, **entry.options)
        self.available, _, _, self.net = run_part(self.backbone)
        # Names of the parameters of the old backbones, and modules of the new ones.
        self.old_names: list[str] = []
        self.new_modules: dict[str, nn.Module] = {}

    def run(self) -> list[str]:
        """Change the config, and return what else there is to say about it."""
        hosts = list(parts_with_backbone(self.cfg.model, 'model'))
        if not hosts:
            parts = [key for key, value in self.cfg.model.items() if isinstance(value, dict)]
            raise self._refusal(
                f'{type_name(self.cfg.model)} has no part called backbone, but {", ".join(parts)}'
            )
        for path, host in hosts:
            self._replace(path, host)
        for node in [self.cfg.model, *(host for _, host in hosts)]:
            if is_pretrained(node.get('init_cfg')):
                del node['init_cfg']
            node.pop('pretrained', None)
        if self.cfg.get('load_from'):
            self.cfg.load_from = None
        self._normalize_images()
        self._set_optimizer()
        self._import_focal_mm()
        return self.notes

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f'{self.entry.name} cannot replace the backbone of {self.file}: {reason}')

    # ---- one backbone, and what reads its maps -------------------------------------------------

    def _replace(self, path: str, host: ConfigDict) -> None:
        """Replace the backbone of a part of the model, and fit what reads its maps."""
        wrapper = host.backbone
        key = next((key for key in NESTED if isinstance(wrapper.get(key), dict)), None)
        old = wrapper if key is None else wrapper[key]
        self._refuse_continued(host)
        old_maps, levels = self._old_maps(old, host)
        if key is not None:
            self._replace_within(path, host, key, old_maps, levels)
            return
        if len({m.stride for m in old_maps}) == 1 < len(old_maps) and 'decode_head' in host:
            old_maps = levels = self._as_pyramid(host, old_maps)
        self.new_modules['backbone'] = self.net
        if isinstance(host.get('decode_head'), list):
            share_map(host.decode_head, old_maps, levels)
        untouched, every = deepcopy(host), list(range(len(old_maps)))
        taken, read = self._read(host, old_maps)
        kept = sorted(taken)
        try:
            stages = self._choose(path, old, [old_maps[i] for i in kept], [levels[i] for i in kept])
            host.backbone = self._new_backbone(old, host, stages)
            if taken != read:
                host.backbone.out_norm = False
            self._fit_readers(host, old_maps, kept, [self.available[i] for i in stages])
        except ValueError:
            if kept == every:
                raise
            # Something takes maps without reading them. Their norms would get no gradient.
            replace_settings(host, untouched)
            stages = self._choose(path, old, old_maps, levels)
            host.backbone = self._new_backbone(old, host, stages)
            host.backbone.out_norm = False
            self._fit_readers(host, old_maps, every, [self.available[i] for i in stages])

    def _replace_within(
        self, path: str, host: ConfigDict, key: str, old_maps: list[Map], levels: list[Map]
    ) -> None:
        """Replace the backbone in a network around one, as BiSeNetV1, and fit that network and what
        reads its maps.
        """
        wrapper = host.backbone
        old = wrapper[key]
        try:
            before = run_part(probed_settings(wrapper)).maps
        except Exception as error:
            raise self._refusal(
                f'{type_name(wrapper)} cannot be built here: {_one_line(error)}'
            ) from None
        stages = self._choose(path, old, old_maps, levels)
        wrapper.pop('pretrained', None)
        if is_pretrained(wrapper.get('init_cfg')):
            del wrapper['init_cfg']
        wrapper[key] = self._new_backbone(old, host, stages)
        new_maps = [self.available[i] for i in stages]
        self._fit(wrapper, old_maps, list(range(len(old_maps))), new_maps, image=True)
        trace = run_part(wrapper)
        inner = {
            f'backbone.{name}': module
            for name, module in trace.module.named_modules()
            if isinstance(module, StagedBackbone)
        }
        self.new_modules.update(inner)
        if not all(all_trained(net, trace.outputs) for net in inner.values()):
            # It takes maps without reading them. Their norms would get no gradient.
            wrapper[key].out_norm = False
        self._fit_readers(host, before, list(range(len(before))), trace.maps)

    def _refuse_continued(self, host: ConfigDict) -> None:
        """Refuse models that run stages of the old backbone elsewhere."""
        if (shared := (host.get('roi_head') or {}).get('shared_head')) is not None:
            raise self._refusal(
                f'its RoI head has a shared_head ({type_name(shared)}), the last stage of a ResNet'
            )
        for neck in listed(host.get('neck')):
            if 'rfp_backbone' in neck:
                raise self._refusal(
                    f'its neck {type_name(neck)} is a recursive pyramid, which feeds its maps to '
                    f'the stages of a second {type_name(neck.rfp_backbone)}'
                )

    def _old_maps(self, old: ConfigDict, host: ConfigDict) -> tuple[list[Map], list[Map]]:
        """Return the maps of the old backbone, and those that it would have without dilation."""
        probed = probed_settings(old)
        try:
            trace = run_part(probed)
        except Exception as error:
            return self._guessed_maps(old, host, error)
        self.old_names += [f'backbone.{name}' for name, _ in trace.module.named_parameters()]
        if not trace.maps:
            raise self._refusal(
                f'{type_name(old)} returns more than maps, as the class tokens of a ViT'
            )
        if 'decode_head' not in host:
            return trace.maps, trace.maps
        plain = {k: v for k, v in probed.items() if k not in _DILATION}
        try:
            levels = run_part(plain).maps
        except Exception:
            levels = trace.maps
        return trace.maps, levels if len(levels) == len(trace.maps) else trace.maps

    def _guessed_maps(
        self, old: ConfigDict, host: ConfigDict, error: Exception
    ) -> tuple[list[Map], list[Map]]:
        """Return the maps that the first reader expects, of the coarsest strides, for a backbone
        that cannot be built here.
        """
        for reader in [*listed(host.get('neck'))[:1], *heads(host)]:
            channels = reader.get('in_channels')
            if isinstance(channels, (list, tuple)) and len(channels) <= len(self.available):
                strides = [m.stride for m in self.available][-len(channels) :]
                # YOLOv3's neck lists the coarsest map first.
                ordered = channels if channels[0] <= channels[-1] else channels[::-1]
                maps = [Map(c, s) for c, s in zip(ordered, strides)]
                self.notes.append(
                    f'{type_name(old)} cannot be built here ({_one_line(error)}): its '
                    f'{len(maps)} maps are taken to have {_plural("stride", strides)}'
                )
                return maps, maps
        raise self._refusal(f'{type_name(old)} cannot be built here: {_one_line(error)}')

    def _as_pyramid(self, host: ConfigDict, maps: list[Map]) -> list[Map]:
        """Return the pyramid that a segmentor makes of the equal maps of a plain ViT.

        Either its necks make it; they are left out, because the new backbone is a pyramid by
        itself. Or its decoder resizes maps, and takes a pyramid instead.
        """
        outputs, necks = maps, listed(host.get('neck'))
        for neck in necks:
            outputs = run_part(neck, outputs).maps
        if len({m.stride for m in outputs}) == len(outputs) > 1:
            del host['neck']
            return outputs
        decoder = heads(host)[0]
        if not necks and len(listed(decoder.get('in_index'))) == len(maps) > 1:
            return [Map(m.channels, new.stride) for m, new in zip(maps, self.available)]
        return maps

    def _read(self, host: ConfigDict, maps: list[Map]) -> tuple[set[int], set[int]]:
        """Return which maps of a backbone its neck or its heads take, and which of them are read:
        a head may choose a map by its index and then leave it aside.
        """
        every = set(range(len(maps)))
        necks = listed(host.get('neck'))
        if necks:
            try:
                read = run_part(necks[0], maps).read or every
            except Exception:
                read = every - set(range(necks[0].get('start_level', 0)))
            return read, read
        if 'decode_head' not in host:
            return every, every
        taken: set[int] = set()
        read = set()
        previous = None
        for head in heads(host):
            chosen: set[int] = set()
            for node in indexed(head):
                several = isinstance(node.get('in_channels'), (list, tuple))
                indices = node.get('in_index', list(every) if several else -1)
                chosen |= {i % len(maps) for i in listed(indices)}
                if node.get('c1_in_channels'):
                    chosen.add(0)
            try:
                trace = run_part(head, maps, previous)
            except Exception:
                previous = None
                read |= chosen
            else:
                previous = trace.outputs
                read |= trace.read
            taken |= chosen
        return taken | read, read

    def _choose(self, path: str, old: ConfigDict, maps: list[Map], levels: list[Map]) -> list[int]:
        """Return the stage for each map of the old backbone: of the same stride, or in a segmentor,
        whose heads resize maps, the next.
        """
        strides = [m.stride for m in self.available]
        segmentor = 'decode_head' in self.cfg.model
        wanted = [m.stride for m in (levels if segmentor else maps)]
        name, kind = self.entry.name, type_name(old)
        refusal = self._refusal(
            f'{kind} returns maps of {_plural("stride", wanted)}, and {name} '
            f'{"one map each " if len(strides) > 1 else "one map "}of {_plural("stride", strides)}'
        )
        if max(wanted) < 16:  # a net that keeps the resolution up to its last layer
            raise refusal
        if wanted != sorted(set(wanted)):
            raise refusal
        stages: list[int] = []
        for stride in wanted:
            first = stages[-1] + 1 if stages else 0
            fitting = [i for i, s in enumerate(strides) if i >= first and s >= stride]
            if not fitting or (not segmentor and strides[fitting[0]] != stride):
                raise refusal
            stages.append(fitting[0])
        if [strides[i] for i in stages] != [m.stride for m in maps]:
            self.notes.append(
                f'{path}.backbone: maps of {_plural("stride", [m.stride for m in maps])} become '
                f'maps of {_plural("stride", [strides[i] for i in stages])}'
            )
        return stages

    def _new_backbone(self, old: ConfigDict, host: ConfigDict, stages: list[int]) -> ConfigDict:
        """Return the new backbone, with the arguments of dense prediction."""
        entry, cfg = self.entry, self.cfg
        new = ConfigDict(self.backbone)
        size = next((part for part in entry.arch.split('_') if part in _SIZES), '')
        classifier = 'head' in host and 'bbox_head' not in host
        if not classifier:
            if entry.backbone == 'FocalNet' and size in ('tiny', 'small', 'base'):
                if 'iso' not in entry.arch:
                    new.focal_windows = 9
            elif entry.backbone == 'FocalTransformer' and 'fast' not in entry.arch:
                new.update(focal_windows=(15, 13, 9, 7), expand_sizes=3)
        rates = _DROP_PATH.get(entry.backbone, {}).get(size)
        if rates is not None:
            long = (cfg.get('train_cfg') or {}).get('max_epochs', 13) > 12
            new.drop_path_rate = rates[long]
            if 'decode_head' in host:
                new.drop_path_rate = _DROP_PATH_IN_SEGMENTATION
        if entry.backbone == 'MixFormer':
            new.norm_eval = True  # of the pooled channels; a batch of a GPU has few images
        if old.get('in_channels', 3) != 3:
            new.update(in_channels=old.in_channels, adapt_in_channels=True)
        if stages != list(range(len(self.available))):
            new.out_indices = tuple(stages)
        new.init_cfg = dict(type='Pretrained', checkpoint=f'focal://{entry.name}')
        if entry.kind != 'classifier':
            new.init_cfg.prefix = 'backbone.'
        return new

    def _fit_readers(
        self, host: ConfigDict, old: list[Map], kept: list[int], new: list[Map]
    ) -> None:
        """Fit the necks and heads of a part of the model to new maps.

        Args:
            host (ConfigDict): The part.
            old (list[Map]): All maps of the old backbone.
            kept (list[int]): Those of them that have a successor.
            new (list[Map]): The successors.
        """
        for neck in listed(host.get('neck')):
            try:
                outputs = run_part(neck, old).maps
            except Exception:
                outputs = None
            untouched = deepcopy(neck)
            trace = self._fit(neck, old, kept, new, check=outputs is not None)
            if trace is None:
                if neck == untouched:
                    raise self._refusal(
                        f'{type_name(neck)} cannot be run here, and no setting of it is known to '
                        f'be the channels of its maps'
                    )
                return  # the neck is taken to return the channels that it did
            if outputs and trace.maps:  # a pooled vector has the channels of its map
                old, new = outputs, trace.maps
                kept = list(range(len(old)))
        if [m.channels for m in old] == [m.channels for m in new] and len(kept) == len(old):
            return
        previous: Any = [None, None]
        for head in heads(host):
            before = None
            with suppress(Exception):
                before = run_part(head, old, previous[0])
            after = self._fit(head, old, kept, new, previous=previous[1], check=before is not None)
            previous = [before and before.outputs, after and after.outputs]

    def _fit(
        self,
        node: ConfigDict,
        old: list[Map],
        kept: list[int],
        new: list[Map],
        previous: Any = None,
        image: bool = False,
        check: bool = True,
    ) -> 'Trace | None':
        """Change the settings of a neck, a head or a network around a backbone so that it takes
        new maps.

        First its ``in_channels`` are set; then, as long as a layer gets other channels than it was
        built for, a setting of that value.

        Args:
            node (ConfigDict): The part, changed in place.
            old (list[Map]): All maps that it got.
            kept (list[int]): Those of them that have a successor.
            new (list[Map]): The successors.
            previous (Any): Outputs of the head before it, for cascades of heads. Default: None.
            image (bool): Whether it takes an image. Default: False.
            check (bool): Whether it can be run. Default: True.

        Returns:
            Trace or None: What it does with the new maps; None without ``check``.

        Raises:
            ValueError: If no change of channels makes it run.
        """
        channels = {old[i].channels: m.channels for i, m in zip(kept, new)}
        reason: Exception | None = None
        for everywhere in (image, not image):
            trial = deepcopy(node)
            if not image:
                set_inputs(trial, [m.channels for m in old], kept, [m.channels for m in new])
            if not check:
                replace_settings(node, trial)
                return None
            if everywhere:
                map_channels(trial, node, channels)
            for _ in range(_ATTEMPTS):
                try:
                    trace = run_part(trial, None if image else new, previous)
                except MisfitError as error:
                    reason = error
                    changed = set_channels(trial, error.expected, error.given)
                except Exception as error:
                    reason = error
                    changed = any(set_each(trial, channels))
                else:
                    replace_settings(node, trial)
                    return trace
                if not changed:
                    break
        assert reason is not None
        raise self._refusal(f'{type_name(node)} does not work with its maps: {_one_line(reason)}')

    # ---- what else depends on a backbone -------------------------------------------------------

    def _normalize_images(self) -> None:
        """Normalize images as the published weights were trained."""
        places = [self.cfg, *dicts(self.cfg.model)]
        for place in places:
            for node in dicts(place.get('data_preprocessor')):
                kind = type_name(node)
                if 'data_preprocessor' in node or not (
                    'mean' in node or kind.lower().endswith('preprocessor')
                ):
                    continue
                if len(listed(node.get('mean')) or _MEAN) != len(_MEAN):
                    continue  # of images with other channels
                node.update(mean=list(_MEAN), std=list(_STD))
                by_to_rgb = 'to_rgb' in node or kind.startswith(('Cls', 'ReID', 'SelfSup'))
                node['to_rgb' if by_to_rgb else 'bgr_to_rgb'] = True
                node.pop('rgb_to_bgr', None)

    def _set_optimizer(self) -> None:
        """Use AdamW in place of SGD, spare norms and position biases from weight decay, and leave
        out what was made for the parameters of the old backbone. All other options stay.
        """
        wrapper = self.cfg.get('optim_wrapper')
        if not isinstance(wrapper, ConfigDict) or 'optimizer' not in wrapper:
            return
        if type_name(wrapper.optimizer) == 'SGD':
            self._use_adamw(wrapper)
        options = ConfigDict(wrapper.get('paramwise_cfg') or {})
        constructor = wrapper.get('constructor', '')
        if re.search(_CONSTRUCTORS, getattr(constructor, '__name__', str(constructor))):
            del wrapper['constructor']
            for key in _LAYER_DECAY:
                options.pop(key, None)
        options.setdefault('norm_decay_mult', 0.0)
        keys = ConfigDict(options.get('custom_keys') or {})
        parameters = {
            f'{start}.{name}': owner
            for start, net in self.new_modules.items()
            for owner_name, owner in net.named_modules()
            for name in (
                f'{owner_name}.{key}'.lstrip('.')
                for key, _ in owner.named_parameters(recurse=False)
            )
        }
        for key in list(keys):
            of_old = key.startswith('backbone.') or any(key in name for name in self.old_names)
            if (of_old or key in _OTHERS) and not any(key in name for name in parameters):
                del keys[key]
        own: dict[str, dict] = {}
        for name, owner in parameters.items():
            table = _TABLE in name
            if not table and not isinstance(owner, _NORMS):
                continue
            hiding = max((key for key in keys if key in name), key=len, default=None)
            if hiding is None and not table:
                continue  # norm_decay_mult is for it
            if keys.get(hiding, {}).get('decay_mult', 1.0) == 0:
                continue
            place = _TABLE
            if hiding is not None:
                place = name if table else re.sub(r'\d*$', '', name.rpartition('.')[0])
            own[place] = dict(keys.get(hiding, {}), decay_mult=0.0)
        keys.update(own)
        if keys or 'custom_keys' in options:
            options.custom_keys = keys
        wrapper.paramwise_cfg = options

    def _use_adamw(self, wrapper: ConfigDict) -> None:
        """Replace SGD, with whose learning rates the backbones do not train, and scale the learning
        rates that schedules end with.
        """
        images = (self.cfg.get('auto_scale_lr') or {}).get('base_batch_size') or _IMAGES
        segmentor = 'decode_head' in self.cfg.model
        adamw = dict(_ADAMW['segmentation' if segmentor else 'detection'])
        adamw['lr'] = float(f'{adamw["lr"] * (images / _IMAGES) ** 0.5:.2g}')
        ratio = adamw['lr'] / wrapper.optimizer.get('lr', adamw['lr'])
        wrapper.optimizer = adamw
        for scheduler in dicts(self.cfg.get('param_scheduler')):
            if scheduler.get('eta_min'):
                scheduler.eta_min = float(f'{scheduler.eta_min * ratio:.2g}')

    def _import_focal_mm(self) -> None:
        """Make the config import focal_mm, so that other programs can read it."""
        imports = ConfigDict(self.cfg.get('custom_imports') or dict(allow_failed_imports=False))
        modules = listed(imports.get('imports'))
        if 'focal_mm' not in modules:
            # First: modules that import mmdet's models may need its ops.
            imports.imports = ['focal_mm', *modules]
            self.cfg.custom_imports = imports


def _plural(noun: str, numbers: Sequence[int]) -> str:
    return f'{noun}{"s" * (len(numbers) > 1)} {", ".join(map(str, numbers))}'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
