"""A backbone of focal_mm in place of any other: :func:`use_backbone`, ``--backbone`` of the tools.

Nothing here knows a detector by its name. The old backbone is built on PyTorch's meta device, which
computes shapes alone, and so are the necks and heads that read its maps. Which maps they read
follows from gradients; which of their settings are channels of these maps follows from the first
layer that the new maps do not fit. What cannot be made to fit is refused.
"""

import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .backbones.base import StagedBackbone
from .config import dicts, is_pretrained, type_name
from .weights import ZOO, Weights

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
# Arguments that change neither channels nor strides of a backbone, but need files or compiled ops.
_NOT_PROBED = ('init_cfg', 'pretrained', 'checkpoint', 'dcn', 'stage_with_dcn', 'plugins')
_DILATION = ('strides', 'dilations', 'multi_grid', 'contract_dilation')
_SIDES = dict(meta=512, cpu=256)  # pixels of the images that are traced
_NESTED = ('backbone', 'backbone_cfg')
_ATTEMPTS = 10  # settings of one neck or head that may have to change


class Map(NamedTuple):
    """A feature map: its channels, and its stride in pixels."""

    channels: int
    stride: int


class _Trace(NamedTuple):
    """What a part of a model does with maps or with an image.

    Attributes:
        maps (list[Map]): What it returns; empty if that is not maps.
        read (set[int]): Positions of the inputs that its outputs depend on.
        outputs (Any): What it returns, as it is.
        module (nn.Module): The part.
    """

    maps: list[Map]
    read: set[int]
    outputs: Any
    module: nn.Module


class _MisfitError(Exception):
    """A layer gets other channels than it was built for."""

    def __init__(self, name: str, expected: int, given: int) -> None:
        super().__init__(f'{name} expects {expected} channels and gets {given}')
        self.expected, self.given = expected, given


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
    for line in [*_differences(cfg._cfg_dict, new), *notes]:
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
        self.available, _, _, self.net = _trace(self.backbone)
        # Names of the parameters of the old backbones, and modules of the new ones.
        self.old_names: list[str] = []
        self.new_modules: dict[str, nn.Module] = {}

    def run(self) -> list[str]:
        """Change the config, and return what else there is to say about it."""
        hosts = list(_hosts(self.cfg.model, 'model'))
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
        key = next((key for key in _NESTED if isinstance(wrapper.get(key), dict)), None)
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
            _share_map(host.decode_head, old_maps, levels)
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
            _replace_settings(host, untouched)
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
            before = _trace(_probed(wrapper)).maps
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
        trace = _trace(wrapper)
        inner = {
            f'backbone.{name}': module
            for name, module in trace.module.named_modules()
            if isinstance(module, StagedBackbone)
        }
        self.new_modules.update(inner)
        if not all(_all_trained(net, trace.outputs) for net in inner.values()):
            # It takes maps without reading them. Their norms would get no gradient.
            wrapper[key].out_norm = False
        self._fit_readers(host, before, list(range(len(before))), trace.maps)

    def _refuse_continued(self, host: ConfigDict) -> None:
        """Refuse models that run stages of the old backbone elsewhere."""
        if (shared := (host.get('roi_head') or {}).get('shared_head')) is not None:
            raise self._refusal(
                f'its RoI head has a shared_head ({type_name(shared)}), the last stage of a ResNet'
            )
        for neck in _listed(host.get('neck')):
            if 'rfp_backbone' in neck:
                raise self._refusal(
                    f'its neck {type_name(neck)} is a recursive pyramid, which feeds its maps to '
                    f'the stages of a second {type_name(neck.rfp_backbone)}'
                )

    def _old_maps(self, old: ConfigDict, host: ConfigDict) -> tuple[list[Map], list[Map]]:
        """Return the maps of the old backbone, and those that it would have without dilation."""
        probed = _probed(old)
        try:
            trace = _trace(probed)
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
            levels = _trace(plain).maps
        except Exception:
            levels = trace.maps
        return trace.maps, levels if len(levels) == len(trace.maps) else trace.maps

    def _guessed_maps(
        self, old: ConfigDict, host: ConfigDict, error: Exception
    ) -> tuple[list[Map], list[Map]]:
        """Return the maps that the first reader expects, of the coarsest strides, for a backbone
        that cannot be built here.
        """
        for reader in [*_listed(host.get('neck'))[:1], *_heads(host)]:
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
        outputs, necks = maps, _listed(host.get('neck'))
        for neck in necks:
            outputs = _trace(neck, outputs).maps
        if len({m.stride for m in outputs}) == len(outputs) > 1:
            del host['neck']
            return outputs
        decoder = _heads(host)[0]
        if not necks and len(_listed(decoder.get('in_index'))) == len(maps) > 1:
            return [Map(m.channels, new.stride) for m, new in zip(maps, self.available)]
        return maps

    def _read(self, host: ConfigDict, maps: list[Map]) -> tuple[set[int], set[int]]:
        """Return which maps of a backbone its neck or its heads take, and which of them are read:
        a head may choose a map by its index and then leave it aside.
        """
        every = set(range(len(maps)))
        necks = _listed(host.get('neck'))
        if necks:
            try:
                read = _trace(necks[0], maps).read or every
            except Exception:
                read = every - set(range(necks[0].get('start_level', 0)))
            return read, read
        if 'decode_head' not in host:
            return every, every
        taken: set[int] = set()
        read = set()
        previous = None
        for head in _heads(host):
            chosen: set[int] = set()
            for node in _indexed(head):
                several = isinstance(node.get('in_channels'), (list, tuple))
                indices = node.get('in_index', list(every) if several else -1)
                chosen |= {i % len(maps) for i in _listed(indices)}
                if node.get('c1_in_channels'):
                    chosen.add(0)
            try:
                trace = _trace(head, maps, previous)
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
        for neck in _listed(host.get('neck')):
            try:
                outputs = _trace(neck, old).maps
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
        for head in _heads(host):
            before = None
            with suppress(Exception):
                before = _trace(head, old, previous[0])
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
    ) -> '_Trace | None':
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
            _Trace or None: What it does with the new maps; None without ``check``.

        Raises:
            ValueError: If no change of channels makes it run.
        """
        channels = {old[i].channels: m.channels for i, m in zip(kept, new)}
        reason: Exception | None = None
        for everywhere in (image, not image):
            trial = deepcopy(node)
            if not image:
                _set_inputs(trial, [m.channels for m in old], kept, [m.channels for m in new])
            if not check:
                _replace_settings(node, trial)
                return None
            if everywhere:
                _map_channels(trial, node, channels)
            for _ in range(_ATTEMPTS):
                try:
                    trace = _trace(trial, None if image else new, previous)
                except _MisfitError as error:
                    reason = error
                    changed = _set_channels(trial, error.expected, error.given)
                except Exception as error:
                    reason = error
                    changed = any(_set_each(trial, channels))
                else:
                    _replace_settings(node, trial)
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
                if len(_listed(node.get('mean')) or _MEAN) != len(_MEAN):
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
        modules = _listed(imports.get('imports'))
        if 'focal_mm' not in modules:
            # First: modules that import mmdet's models may need its ops.
            imports.imports = ['focal_mm', *modules]
            self.cfg.custom_imports = imports


_SIZES = ('tiny', 'small', 'base', 'large', 'xlarge', 'huge')
_TABLE = 'relative_position_bias_table'
_OTHERS = ('absolute_pos_embed',)  # of Swin's configs, which mostly have no such parameter
_NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)


# ---- the parts of a config ---------------------------------------------------------------------


def _hosts(node: Any, path: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the parts of a model that have a backbone, with their paths; teachers stay."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _hosts(child, f'{path}.{i}')
    if not isinstance(node, dict):
        return
    own = isinstance(node.get('backbone'), dict) and 'type' in node['backbone']
    if own:
        yield path, node
    for key, child in node.items():
        if 'teacher' not in key and not (own and key == 'backbone'):
            yield from _hosts(child, f'{path}.{key}')


def _heads(host: ConfigDict) -> list[ConfigDict]:
    """Return the heads of a part of a model: the decoders of a segmentor first."""
    keys = sorted(
        (key for key in host if key.endswith('head')), key=lambda key: key != 'decode_head'
    )
    return [node for key in keys for node in _listed(host[key]) if isinstance(node, dict) and node]


def _share_map(heads: list[ConfigDict], maps: list[Map], levels: list[Map]) -> None:
    """Make heads in a cascade, of which each takes the output of the one before beside a map, read
    the map of the last head, if their maps have one size only by dilation.
    """
    indices = [head.get('in_index', -1) for head in heads]
    if not all(isinstance(i, int) for i in indices):
        return
    last = maps[indices[-1]]
    same = len({maps[i].stride for i in indices}) == 1 < len({levels[i].stride for i in indices})
    for head in heads if same else ():
        head.update(in_index=indices[-1], in_channels=last.channels)


def _probed(backbone: ConfigDict) -> dict:
    """Return the settings that channels and strides of a backbone depend on."""
    settings = {key: value for key, value in backbone.items() if key not in _NOT_PROBED}
    if 'TIMM' in type_name(backbone):
        settings['pretrained'] = False  # otherwise it downloads weights
    return settings


def _indexed(head: ConfigDict) -> list[ConfigDict]:
    """Return those parts of a segmentor's head that choose maps by ``in_index``."""
    return [node for node in dicts(head) if 'in_index' in node] or [head]


def _listed(value: Any) -> list:
    """Return the items of a list or tuple, one value as a list, and nothing for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _like(value: Any, items: Sequence) -> Any:
    return tuple(items) if isinstance(value, tuple) else list(items)


def _replace_settings(node: ConfigDict, new: ConfigDict) -> None:
    node.clear()
    node.update(new)


def _set_inputs(node: ConfigDict, old: list[int], kept: list[int], new: list[int]) -> None:
    """Set the channels of the maps that a neck or head takes, and its indices of maps.

    Args:
        node (ConfigDict): Settings of the neck or head, changed in place.
        old (list[int]): Channels of all maps that it got.
        kept (list[int]): Positions of those that it still gets.
        new (list[int]): Their new channels.
    """
    successors = dict(zip(kept, new))
    by_value = {old[i]: c for i, c in successors.items()}
    for part in dicts(node):
        indices = part.get('in_index')
        chosen = [i % len(old) for i in _listed(indices)]
        for key in ('in_channels', 'out_channels'):
            value = part.get(key)
            if key == 'out_channels' and not type_name(part).endswith('RoIExtractor'):
                continue
            if isinstance(value, (list, tuple)):
                if chosen and len(chosen) == len(value):
                    part[key] = _like(value, [successors[i] for i in chosen])
                elif list(value) == old:
                    part[key] = _like(value, new)
                elif list(value) == old[::-1]:
                    part[key] = _like(value, new[::-1])
            elif isinstance(value, int):
                if len(chosen) == 1:
                    part[key] = successors[chosen[0]]
                elif part is node or len(old) == 1:
                    part[key] = by_value.get(value, value)
        if chosen:
            positions = [kept.index(i) for i in chosen]
            part.in_index = positions[0] if isinstance(indices, int) else _like(indices, positions)
    dropped = 0
    while dropped < len(old) and dropped not in kept:
        dropped += 1
    for key in ('start_level', 'end_level'):
        if node.get(key, -1) > 0:
            node[key] = max(0, node[key] - dropped)


def _settings(node: Any, path: tuple = ()) -> Iterator[tuple[str, int, tuple]]:
    """Yield each integer in a part of a config: the name of its setting, its value, and its path,
    which ends in a position for an item of a list.
    """
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        place = (*path, key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield next(key for key in reversed(place) if isinstance(key, str)), value, place
        elif isinstance(value, (dict, list, tuple)):
            yield from _settings(value, place)


def _assign(node: Any, path: tuple, value: int) -> Any:
    """Change the value at a path, and return the node; tuples are replaced."""
    key, *rest = path
    item = _assign(node[key], tuple(rest), value) if rest else value
    if isinstance(node, tuple):
        return (*node[:key], item, *node[key + 1 :])
    node[key] = item
    return node


def _set_channels(node: ConfigDict, old: int, new: int) -> bool:
    """Change the first setting with the value ``old`` that is a number of channels: of an input, if
    there is one. Return whether there was any.
    """
    ranks = ('in_channels', 'channels', 'dims', 'dim')
    found = [
        (next(i for i, rank in enumerate(ranks) if name.endswith(rank)), name != 'in_channels', n)
        for n, (name, value, _) in enumerate(_settings(node))
        if value == old and name.endswith(ranks)
    ]
    if found:
        _assign(node, list(_settings(node))[min(found)[-1]][-1], new)
    return bool(found)


def _set_each(node: ConfigDict, channels: dict[int, int]) -> list[bool]:
    """Call :func:`_set_channels` for every pair of an old and a new number of channels."""
    return [_set_channels(node, old, new) for old, new in channels.items()]


def _map_channels(node: ConfigDict, original: ConfigDict, channels: dict[int, int]) -> None:
    """Change every setting that is a number of channels of an old map, and was so before."""
    current = {path: value for _, value, path in _settings(node)}
    for name, value, path in _settings(original):
        if name.endswith('channels') and value in channels and current.get(path) == value:
            _assign(node, path, channels[value])


# ---- running parts of a model on shapes --------------------------------------------------------


def _trace(node: dict, maps: list[Map] | None = None, previous: Any = None) -> _Trace:
    """Build a part of a model and run it on maps, or on images: on the meta device if it can be,
    else on the CPU with small images.

    Args:
        node (dict): Settings of the part.
        maps (list[Map], optional): Default: it takes images.
        previous (Any): Outputs of the head before it, if it takes them. Default: None.

    Raises:
        _MisfitError: If a layer gets other channels than it was built for.
        Exception: Whatever the part raises.
    """
    try:
        return _trace_on('meta', node, maps, previous)
    except _MisfitError:
        raise
    except Exception:
        return _trace_on('cpu', node, maps, previous)


class _NumbersOnCpu(TorchFunctionMode):
    """Keeps rates of stochastic depth, which are read as numbers, off the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.linspace:
            return func(*args, **dict(kwargs or {}, device='cpu'))
        return func(*args, **(kwargs or {}))


def _trace_on(device: str, node: dict, maps: list[Map] | None, previous: Any) -> _Trace:
    height, width = _size(node.get('img_size') if maps is None else None, _SIDES[device])
    with torch.device(device), _NumbersOnCpu():
        # torch.Tensor(n), as in mmdet's L2Norm, is on the CPU in any case.
        module = revert_sync_batchnorm(MODELS.build(deepcopy(node))).to(device)
        part = maps is not None or any(key in node for key in _NESTED)
        module.train(part)  # mmdet's ResNet returns nothing
        if maps is None:
            inputs = [torch.rand(2, node.get('in_channels', 3), height, width)]
        else:
            sides = [-(-width // m.stride) for m in maps]
            inputs = [torch.rand(2, m.channels, n, n) for m, n in zip(maps, sides)]
        for tensor in inputs if maps is not None else ():
            tensor.requires_grad_()
        for name, layer in module.named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, _BatchNorm)):
                layer.register_forward_pre_hook(_Check(name, layer))
        arguments: list[Any] = [inputs[0] if maps is None else tuple(inputs)]
        if 'prev_output' in signature(module.forward).parameters:
            arguments.append(previous)
        with torch.set_grad_enabled(part):
            outputs = module(*arguments)
        read = set() if maps is None else _positions_read(inputs, outputs)
    flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    are_maps = all(isinstance(m, Tensor) and m.ndim == 4 for m in flat)
    found = [Map(m.shape[1], round(width / m.shape[3])) for m in flat] if are_maps else []
    return _Trace(found, read, outputs, module)


def _size(given: Any, side: int) -> tuple[int, int]:
    """Return the height and width of the image to trace: those that a ViT was built for, if any."""
    if given is None:
        return side, side
    return (given, given) if isinstance(given, int) else tuple(given)


class _Check:
    """Hook that compares the channels of a layer's input with those that it was built for."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name = name
        self.axis = -1 if isinstance(layer, nn.Linear) else 1
        sizes = ('in_channels', 'in_features', 'num_features')
        self.expected = next(getattr(layer, key) for key in sizes if hasattr(layer, key))

    def __call__(self, layer: nn.Module, inputs: tuple) -> None:
        given = inputs[0].shape[self.axis] if inputs else self.expected
        if given != self.expected:
            raise _MisfitError(self.name, self.expected, given)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        if outputs.requires_grad:
            yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _tensors(value)


def _positions_read(inputs: Sequence[Tensor], outputs: Any) -> set[int]:
    """Return the positions of those inputs that any of the outputs depends on."""
    results = [tensor.sum() for tensor in _tensors(outputs)]
    if not results:
        return set()
    gradients = torch.autograd.grad(results, inputs, allow_unused=True, retain_graph=True)
    return {i for i, gradient in enumerate(gradients) if gradient is not None}


def _all_trained(backbone: nn.Module, outputs: Any) -> bool:
    """Return whether the outputs depend on every parameter of a backbone."""
    parameters = list(backbone.parameters())
    return len(_positions_read(parameters, outputs)) == len(parameters)


# ---- sentences ---------------------------------------------------------------------------------


def _plural(noun: str, numbers: Sequence[int]) -> str:
    return f'{noun}{"s" * (len(numbers) > 1)} {", ".join(map(str, numbers))}'


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__


def _brief(value: Any, most: int = 300) -> str:
    if isinstance(value, dict) and 'type' in value:
        rest = [f'{key}={_brief(item)}' for key, item in value.items() if key != 'type']
        text = f'{type_name(value)}({", ".join(rest)})'
    else:
        text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
    return text if len(text) <= most else f'{text[: most - 3]}...'


def _differences(old: Any, new: Any, path: str = '') -> Iterator[str]:
    """Yield a line for each setting that differs between two configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get('type') and new.get('type') and type_name(old) != type_name(new):
            yield f'{path}: {_brief(old, 60)} -> {_brief(new)}'
            return
        added = [key for key in new if key not in old]
        for key in old:
            place = f'{path}.{key}'.lstrip('.')
            if key not in new:
                yield f'{place}: left out, was {_brief(old[key], 60)}'
            else:
                yield from _differences(old[key], new[key], place)
        for key in added[:3]:
            yield f'{path}.{key}: {_brief(new[key])}'.lstrip('.')
        if added[3:]:
            yield f'{path}: and {len(added) - 3} more like {added[-1]}'
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if len(old) == len(new) and any(isinstance(item, dict) for item in old):
            for i, (a, b) in enumerate(zip(old, new)):
                yield from _differences(a, b, f'{path}.{i}')
        elif list(old) != list(new):
            yield f'{path}: {_brief(old)} -> {_brief(new)}'
    elif old != new:
        yield f'{path}: {_brief(old)} -> {_brief(new)}'
