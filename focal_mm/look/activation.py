"""Class-activation maps by the package ``grad-cam``, on any layer of a model that has a map."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from math import ceil, log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .maps import evaluating
from .samples import Backbone, Image, Sample, find_backbone, mixers_of, prepare, strides_of


@dataclass
class ClassActivation:
    """Where a class is seen.

    Attributes:
        map (np.ndarray): From 0 to 1, shape (H, W) of the network's input.
        layer (str): Name of the layer.
        label (int or None): The class. None: no class is explained, and the map is the first
            principal component of the layer's output (Eigen-CAM).
        name (str): Name of the class, or ``''``.
    """

    map: np.ndarray
    layer: str
    label: int | None
    name: str


def class_activation(
    model: nn.Module, image: Image, layer: str | None = None, label: int | None = None
) -> ClassActivation:
    """Return which parts of a picture speak for a class, by Grad-CAM.

    The score that is explained is a classifier's logit, the sum of a segmentor's logits where it
    sees the class, or the sum of a detector's scores for the class. A backbone alone, and a
    detector that finds nothing, have no such score: Eigen-CAM then shows what the layer responds
    to.

    Args:
        model (nn.Module): A classifier of mmpretrain, a detector of mmdet, a segmentor of mmseg, or
            another model with a backbone of this project.
        image (str, Path, np.ndarray, Tensor or Sample): The picture.
        layer (str, optional): Name of a layer, as ``model.named_modules()`` lists it. Of a layer
            with several outputs, the maps of all are averaged. Default: the backbone's last stage.
        label (int, optional): The class. Default: the one of the highest score.

    Raises:
        ValueError: If there is no such layer or class, or the layer has no map.
        ImportError: If the package ``grad-cam`` is missing.
    """
    try:
        from pytorch_grad_cam import EigenCAM, GradCAM
    except ImportError as error:
        raise ImportError(
            "class-activation maps need the package grad-cam: pip install 'focal-mm[look]'"
        ) from error
    name, target = _find_layer(model, layer)
    sample = prepare(model, image)
    score = Score(model, sample, label)
    probes = Probes(find_backbone(model), sample.inputs)
    hooks = [
        score.register_forward_pre_hook(probes.restart),
        target.register_forward_hook(probes.listen),
    ]
    try:
        with evaluating(model), without_gradients(model):
            inputs = sample.inputs.detach().clone().requires_grad_()
            score(inputs)
            if not probes.maps:
                raise ValueError(
                    f'layer {name!r}: its output, {probes.seen or "none in this run"}, is no map; '
                    'give another layer, or none for the last stage'
                )
            reached = _reached(score.value, probes.maps)
            method = GradCAM if any(reached) else EigenCAM
            found = []
            for probe, has_gradient in zip(probes.modules[: len(reached)], reached):
                if has_gradient or method is EigenCAM:
                    cam = method(score, [probe], reshape_transform=probes.as_map)
                    found.append(cam(inputs, [torch.sum])[0])
                    cam.activations_and_grads.release()
    finally:
        for hook in hooks:
            hook.remove()
    label = score.label if any(reached) else None
    return ClassActivation(np.mean(found, 0), name, label, _class_name(model, label))


def _find_layer(model: nn.Module, layer: str | None) -> tuple[str, nn.Module]:
    named = dict(model.named_modules())
    if layer is None:
        backbone: Any = find_backbone(model)
        stage = backbone.layers[-1] if hasattr(backbone, 'layers') else backbone.stage
        layer = next(key for key, module in named.items() if module is stage)
    if layer not in named:
        near = get_close_matches(layer, named, n=3)
        hint = f'; did you mean {", ".join(near)}?' if near else ''
        raise ValueError(f'{type(model).__name__} has no layer {layer!r}{hint}')
    return layer, named[layer]


def _class_name(model: Any, label: int | None) -> str:
    names = (getattr(model, 'dataset_meta', None) or {}).get('classes') or ()
    return names[label] if label is not None and label < len(names) else ''


class Score(nn.Module):
    """What a model says of one class, as a number that has a gradient.

    Args:
        model (nn.Module): The model.
        sample (Sample): The picture.
        label (int, optional): The class. Default: chosen in the first run, and then kept.
    """

    def __init__(self, model: Any, sample: Sample, label: int | None) -> None:
        super().__init__()
        self.model, self.sample, self.label = model, sample, label
        self.value: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Image (1, C, H, W) -> (1, 1)."""
        measures: dict[str, Callable[[Tensor], Tensor | None]] = dict(
            mmpretrain=self._of_classifier, mmseg=self._of_segmentor, mmdet=self._of_detector
        )
        libraries = (cls.__module__.partition('.')[0] for cls in type(self.model).mro())
        measure = next(filter(None, map(measures.get, libraries)), self._of_none)
        self.value = measure(inputs)
        if self.value is None:
            self.label = None
            return inputs.new_zeros(1, 1)
        return self.value.reshape(1, 1)

    def _choose(self, scores: Tensor) -> int:
        """Return the class, the best of the scores of all classes unless it is given."""
        if self.label is None:
            self.label = int(scores.argmax())
        if not 0 <= self.label < len(scores):
            raise ValueError(f'label {self.label}: the model has classes 0 to {len(scores) - 1}')
        return self.label

    def _of_none(self, inputs: Tensor) -> Tensor | None:
        if self.label is not None:
            raise ValueError(f'label {self.label}: {type(self.model).__name__} has no classes')
        find_backbone(self.model)(inputs)
        return None

    def _of_classifier(self, inputs: Tensor) -> Tensor | None:
        if not getattr(self.model, 'with_head', True):
            return self._of_none(inputs)
        logits = self.model(inputs, mode='tensor')
        logits = logits[-1] if isinstance(logits, (tuple, list)) else logits
        return logits[0, self._choose(logits[0])]

    def _of_segmentor(self, inputs: Tensor) -> Tensor:
        logits = self.model.encode_decode(inputs, [s.metainfo for s in self._samples(inputs)])[0]
        seen = logits.argmax(0)
        label = self._choose(torch.bincount(seen.flatten(), minlength=len(logits)))
        chosen = logits[label]
        return chosen[seen == label].sum() if (seen == label).any() else chosen.mean()

    def _of_detector(self, inputs: Tensor) -> Tensor | None:
        found = self.model(inputs, self._samples(inputs), mode='predict')[0].pred_instances
        scores, labels = found.scores, found.labels
        if self.label is None and len(scores):
            self.label = int(labels[scores.argmax()])
        chosen = scores[labels == self.label] if self.label is not None else scores[:0]
        return chosen.sum() if len(chosen) else None

    def _samples(self, inputs: Tensor) -> list:
        if self.sample.data_samples is None:
            from mmengine.structures import BaseDataElement

            size = tuple(inputs.shape[2:])
            meta: dict[str, Any] = dict(
                img_shape=size, ori_shape=size, batch_input_shape=size, pad_shape=size
            )
            return [BaseDataElement(metainfo=meta | dict(scale_factor=(1.0, 1.0)))]
        return [one.clone() for one in self.sample.data_samples]


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Keep the parameters' gradients, which grad-cam would clear, and compute no others."""
    kept = [(one, one.requires_grad, one.grad) for one in model.parameters()]
    for parameter, _, _ in kept:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad, grad in kept:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


class Probes:
    """Identities that the maps of a layer pass through, where grad-cam listens. Each call of the
    layer, and each of its outputs that is a map, has an identity of its own.

    Args:
        backbone (StagedBackbone or MixingConvNet): The backbone; its rows of tokens are maps, too.
        inputs (Tensor): What the network gets, shape (1, C, H, W).

    Attributes:
        modules (list[nn.Module]): The identities.
        maps (list[Tensor]): What passed them in the last run.
        seen (str): Shape of the last output that is no map.
    """

    def __init__(self, backbone: Backbone, inputs: Tensor) -> None:
        self.size = height, width = tuple(inputs.shape[2:])
        self.modules: list[nn.Module] = []
        self.maps: list[Tensor] = []
        self.seen = ''
        self.token_maps: dict[int, tuple[int, int]] = {}
        scales = [(ceil(height / stride), ceil(width / stride)) for stride in (64, 32, 16, 8, 4)]
        for i, size in enumerate(scales):
            # Of the tokens of several scales in a row, as in DETR, the finest are the map.
            for total in accumulate(h * w for h, w in reversed(scales[: i + 1])):
                self.token_maps[total] = size
        for mixers, stride in zip(mixers_of(backbone), strides_of(backbone)):
            for mixer in mixers:
                side = getattr(mixer, 'window_size', 1)
                rows, cols = (ceil(ceil(x / stride) / side) for x in (height, width))
                pooled = sum(rows * cols * 4**i for i in range(getattr(mixer, 'pooled_levels', 0)))
                size = rows * side, cols * side
                self.token_maps[size[0] * size[1] + pooled] = size

    def restart(self, *_: Any) -> None:
        """Begin with the first identity again, before the model runs."""
        self.maps = []

    def listen(self, _module: nn.Module, _args: Any, out: Any) -> Any:
        """Pass the maps in a layer's output through the identities."""
        if isinstance(out, dict):
            return {key: self.listen(_module, _args, part) for key, part in out.items()}
        if type(out) in (tuple, list):
            return type(out)(self.listen(_module, _args, part) for part in out)
        if not isinstance(out, Tensor) or self.as_map(out) is None:
            self.seen = f'of shape {tuple(out.shape)}' if isinstance(out, Tensor) else ''
            return out
        if len(self.maps) == len(self.modules):
            self.modules.append(nn.Identity())
        # A copy, since what follows may change its input in place.
        out = self.modules[len(self.maps)](out.clone())
        self.maps.append(out)
        return out

    def as_map(self, x: Tensor) -> Tensor | None:
        """Return a layer's output as a map (1, C, H', W'), whichever axis has the channels, or None
        if it is none.
        """
        if not x.is_floating_point() or len(x) != 1:
            return None
        if x.ndim == 3:
            height, width = self.token_maps.get(x.shape[1], (0, 0))
            tokens = x[:, : height * width].unflatten(1, (height, width)) if height else None
            return tokens if tokens is None else tokens.permute(0, 3, 1, 2)
        if x.ndim != 4:
            return None
        # Both sides of the map are the picture's divided by one stride.
        height, width = self.size
        last, first = (
            abs(log(height * cols / (width * rows))) for rows, cols in (x.shape[1:3], x.shape[2:])
        )
        x = x if first < last else x.permute(0, 3, 1, 2)
        return x if x.shape[2:].numel() > 1 or max(self.size) <= 128 else None


def _reached(value: Tensor | None, maps: list[Tensor]) -> list[bool]:
    """Return for each map whether a value depends on it."""
    if value is None or not value.requires_grad:
        return [False] * len(maps)
    grads = torch.autograd.grad(value, maps, retain_graph=True, allow_unused=True)
    return [grad is not None for grad in grads]
