"""Running parts of a model on shapes, to learn which maps they return and read."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

NESTED = ('backbone', 'backbone_cfg')  # keys of a network within a network
_SIDES = dict(meta=512, cpu=256)  # pixels of the images that are traced


class Map(NamedTuple):
    """A feature map: its channels, and its stride in pixels."""

    channels: int
    stride: int


class Trace(NamedTuple):
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


class MisfitError(Exception):
    """A layer gets other channels than it was built for."""

    def __init__(self, name: str, expected: int, given: int) -> None:
        super().__init__(f'{name} expects {expected} channels and gets {given}')
        self.expected, self.given = expected, given


def run_part(node: dict, maps: list[Map] | None = None, previous: Any = None) -> Trace:
    """Build a part of a model and run it on maps, or on images: on the meta device if it can be,
    else on the CPU with small images.

    Args:
        node (dict): Settings of the part.
        maps (list[Map], optional): Default: it takes images.
        previous (Any): Outputs of the head before it, if it takes them. Default: None.

    Raises:
        MisfitError: If a layer gets other channels than it was built for.
        Exception: Whatever the part raises.
    """
    try:
        return _trace_on('meta', node, maps, previous)
    except MisfitError:
        raise
    except Exception:
        return _trace_on('cpu', node, maps, previous)


class NumbersOnCpu(TorchFunctionMode):
    """Keeps rates of stochastic depth, which are read as numbers, off the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.linspace:
            return func(*args, **dict(kwargs or {}, device='cpu'))
        return func(*args, **(kwargs or {}))


def _trace_on(device: str, node: dict, maps: list[Map] | None, previous: Any) -> Trace:
    height, width = _size(node.get('img_size') if maps is None else None, _SIDES[device])
    with torch.device(device), NumbersOnCpu():
        # torch.Tensor(n), as in mmdet's L2Norm, is on the CPU in any case.
        module = revert_sync_batchnorm(MODELS.build(deepcopy(node))).to(device)
        part = maps is not None or any(key in node for key in NESTED)
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
    return Trace(found, read, outputs, module)


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
            raise MisfitError(self.name, self.expected, given)


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


def all_trained(backbone: nn.Module, outputs: Any) -> bool:
    """Return whether the outputs depend on every parameter of a backbone."""
    parameters = list(backbone.parameters())
    return len(_positions_read(parameters, outputs)) == len(parameters)
