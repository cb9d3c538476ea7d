"""What the blocks of a network see, as arrays.

The functions take any model that has a backbone of this project in it, and a picture in any form
that :func:`.samples.prepare` takes. They return lists ``[stage][block]`` of arrays; H and W are
those of the stage's map. The model's mode and weights stay as they are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.focal_attention import FocalAttention, MultiLevelAttention
from ..backbones.focal_modulation import FocalModulation
from ..backbones.mixing_attention import MixingAttention, WindowAttentionBlock
from ..backbones.mixing_convnets import MixingConvNet
from ..kernels.window_attention import attention_weights
from ..kernels.window_plans import Windows
from .samples import Backbone, Image, find_backbone, mixers_of, pixel_of, prepare, strides_of

# What mixers store with keep_maps.
_KEPT = (
    'gates',
    'contexts',
    'modulator',
    'tokens',
    'token_windows',
    'channel_weights',
    'spatial_weights',
)
ATTENDING = (MultiLevelAttention, WindowAttentionBlock)

Found = TypeVar('Found')


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode within a ``with`` block, and each module back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def keeping(mixers: Sequence[Any]) -> Iterator[None]:
    """Let modulations and attentions keep their maps within a ``with`` block."""
    for mixer in mixers:
        mixer.keep_maps = True
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.keep_maps = False
            for name in _KEPT:
                mixer.__dict__.pop(name, None)


def collect(
    model: nn.Module,
    image: Image,
    kinds: type | tuple[type, ...],
    kept: str,
    read: Callable[[Any], Found],
) -> list[list[Found]]:
    """Run a network on a picture and read from the modulation or attention of each block what it
    keeps, right after the block has run, so that the maps of one block are in memory at a time.

    Args:
        model (nn.Module): The model.
        image (str, Path, np.ndarray, Tensor or Sample): The picture.
        kinds (type or tuple): Classes of the modules that have what is read.
        kept (str): The attribute with what is read; from modules that do not keep it nothing is
            read. ``''``: all modules are read.
        read (Callable): Takes the module; returns what is collected.

    Returns:
        list[list]: ``[stage][block]``; the list of a stage without such modules is empty.

    Raises:
        ValueError: If no module has what is read.
    """
    backbone, sample = find_backbone(model), prepare(model, image)
    mixers = [[m for m in stage if isinstance(m, kinds)] for stage in mixers_of(backbone)]
    flat = [mixer for stage in mixers for mixer in stage]
    found: dict[nn.Module, Found] = {}

    def after(mixer: nn.Module, *_: Any) -> None:
        if not kept or hasattr(mixer, kept):
            found[mixer] = read(mixer)
        for name in _KEPT:
            mixer.__dict__.pop(name, None)

    hooks = [mixer.register_forward_hook(after) for mixer in flat]
    try:
        with evaluating(model), keeping(flat), torch.no_grad():
            backbone(sample.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        parts = sorted({type(mixer).__name__ for stage in mixers_of(backbone) for mixer in stage})
        raise ValueError(
            f'{type(backbone).__name__} of {", ".join(parts)} has no {kept.replace("_", " ")}'
        )
    return [[found[mixer] for mixer in stage if mixer in found] for stage in mixers]


def _array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


def read_contexts(mixer: Any) -> list[np.ndarray]:
    """Return the contexts that a modulation keeps of one picture, each (H, W, C) or (1, 1, C)."""
    return [_array(level[0]) for level in mixer.contexts]


def gates(model: nn.Module, image: Image) -> list[list[np.ndarray]]:
    """Return the gates g^1 to g^(L+1) of FocalNet (Eq. 5), each of shape (H, W, L + 1).

    Variants without the global context or without the lower levels have fewer.
    """
    return collect(model, image, FocalModulation, 'gates', lambda m: _array(m.gates[0]))


def contexts(model: nn.Module, image: Image) -> list[list[list[np.ndarray]]]:
    """Return the contexts of FocalNet (Eq. 4): of each block a list of z^1 to z^L, shape (H, W, C),
    and z^(L+1), shape (1, 1, C).
    """
    return collect(model, image, FocalModulation, 'contexts', read_contexts)


def modulators(model: nn.Module, image: Image) -> list[list[np.ndarray]]:
    """Return the modulators of FocalNet, the factor of the query in Eq. 6, each (H, W, C)."""
    return collect(model, image, FocalModulation, 'modulator', lambda m: _array(m.modulator[0]))


def channel_weights(model: nn.Module, image: Image) -> list[list[np.ndarray]]:
    """Return the factors from 0 to 1 by which MixFormer's channel interaction scales the channels
    of the attention (Figure 2), each of shape (C / 2).
    """
    return collect(
        model,
        image,
        MixingAttention,
        'channel_weights',
        lambda m: _array(m.channel_weights[0]),
    )


def spatial_weights(model: nn.Module, image: Image) -> list[list[np.ndarray]]:
    """Return the factors from 0 to 1 by which MixFormer's spatial interaction scales the positions
    of the convolution (Figure 2), each of shape (H', W'), the map padded to whole windows.
    """
    return collect(
        model,
        image,
        MixingAttention,
        'spatial_weights',
        lambda m: _array(m.spatial_weights[0]),
    )


def windows(model: nn.Module, image: Image) -> list[list[np.ndarray]]:
    """Return the windows that attend, each of shape (windows, 4): left, top, right and bottom in
    pixels of the network's input. Of a shifted window, right and bottom may lie beyond the padded
    map: it goes on at the opposite side.
    """
    strides = {
        mixer: stride
        for stage, stride in zip(mixers_of(find_backbone(model)), strides_of(find_backbone(model)))
        for mixer in stage
    }
    return collect(
        model,
        image,
        ATTENDING,
        'token_windows',
        lambda m: window_boxes(m.token_windows) * strides[m],
    )


def window_boxes(plan: Windows) -> np.ndarray:
    """Return left, top, right and bottom of each window in tokens, shape (windows, 4)."""
    (rows, cols), (high, wide), size = plan.grid, plan.padded, plan.window_size
    down, right = plan.shift or (0, 0)
    top, left = np.mgrid[:rows, :cols].reshape(2, -1) * size
    top, left = (top + down) % high, (left + right) % wide
    return np.stack([left, top, left + size, top + size], -1)


class KeyPlaces(NamedTuple):
    """Where the tokens lie that windows attend to, in tokens of the finest map.

    Attributes:
        rows (np.ndarray): First row of each key, shape (windows, keys).
        cols (np.ndarray): First column, shape (windows, keys).
        sides (np.ndarray): Rows and columns that a key covers, shape (keys).
        levels (np.ndarray): 0: the window, 1: its surroundings, 2 and more: the pooled maps, shape
            (keys). Of a key that a shift moves over the border, a part lies at the opposite side.
    """

    rows: np.ndarray
    cols: np.ndarray
    sides: np.ndarray
    levels: np.ndarray


def key_places(plan: Windows) -> KeyPlaces:
    """Return where the keys of a plan lie."""
    numbers = plan.plan(torch.device('cpu')).keys.numpy()
    (rows, cols), (high, wide), size = plan.grid, plan.padded, plan.window_size
    down, right = plan.shift or (0, 0)
    row, col = numbers // wide, numbers % wide
    sides, levels = (np.zeros(numbers.shape[1], int) for _ in range(2))
    fine = numbers[0] < high * wide
    sides[fine] = 1
    levels[fine & (np.cumsum(fine) > size**2)] = int(not hasattr(plan, 'topk'))
    first = high * wide
    for level in range(getattr(plan, 'levels', 0)):
        tall, broad, side = rows << level, cols << level, size >> level
        here = (numbers[0] >= first) & (numbers[0] < first + tall * broad)
        number = numbers[:, here] - first
        # The rim that sub-windows do not fill, as FocalTransformerBlock.pool leaves it out.
        rim = size - (side << level)
        row[:, here] = (number // broad * side + rows * rim // 2 + down) % high
        col[:, here] = (number % broad * side + cols * rim // 2 + right) % wide
        sides[here], levels[here] = side, level + 2
        first += tall * broad
    return KeyPlaces(row, col, sides, levels)


def weights_of(mixer: Any, places: np.ndarray, at_once: int = 256) -> np.ndarray:
    """Return the attention weights of some tokens of a map that a module keeps.

    Args:
        mixer (MultiLevelAttention or WindowAttentionBlock): The module.
        places (np.ndarray): The tokens, as row * width + column.
        at_once (int): Tokens that are computed at a time. Default: 256.

    Returns:
        np.ndarray: Shape (tokens, heads, keys).
    """
    plan, bias = mixer.token_windows, mixer.bias_of(mixer.token_windows, mixer.tokens.dtype)
    chunks = torch.from_numpy(places).to(mixer.tokens.device).split(at_once)
    return np.concatenate(
        [
            _array(attention_weights(mixer.tokens[:1], plan, bias, mixer.num_heads, chunk)[0])
            for chunk in chunks
        ]
    )


def window_of(plan: Windows, places: np.ndarray) -> np.ndarray:
    """Return the number of the window of each token, given as row * width + column."""
    home = plan.home(torch.device('cpu')).flatten().numpy()
    return home[places] // plan.window_size**2


@dataclass
class Attention:
    """What one token, the query, attends to.

    Attributes:
        weights (np.ndarray): Softmax of Eq. 3, shape (heads, keys); 1 in sum for each head.
        boxes (np.ndarray): Left, top, right and bottom of each key in pixels of the network's
            input, shape (keys, 4). See :func:`windows` for those beyond the map.
        levels (np.ndarray): 0 for keys in the window, 1 for its surroundings, 2 and more for the
            pooled maps, shape (keys).
        query (tuple[int, int, int, int]): Box of the query, in pixels.
        extent (tuple[int, int]): Width and height in pixels of the padded map, where a box that
            goes beyond continues at 0.
    """

    weights: np.ndarray
    boxes: np.ndarray
    levels: np.ndarray
    query: tuple[int, int, int, int]
    extent: tuple[int, int]


def attention(
    model: nn.Module, image: Image, query: tuple[float, float] = (0.5, 0.5)
) -> list[list[Attention]]:
    """Return what a token attends to in each block of a Focal Transformer, MixFormer or mixing
    ConvNet.

    Args:
        model (nn.Module): The model.
        image (str, Path, np.ndarray, Tensor or Sample): The picture.
        query (tuple[float, float]): Place of the token, x and y from 0 to 1 as parts of the
            picture's width and height. Default: the middle.
    """
    sample = prepare(model, image)
    backbone = find_backbone(model)
    strides = {
        mixer: stride
        for stage, stride in zip(mixers_of(backbone), strides_of(backbone))
        for mixer in stage
    }

    def read(mixer: Any) -> Attention:
        return read_attention(mixer, strides[mixer], pixel_of(query, sample.picture))

    return collect(model, sample, ATTENDING, 'token_windows', read)


def read_attention(mixer: Any, stride: int, pixel: tuple[int, int]) -> Attention:
    """Return what the token at a pixel attends to, from the tokens that a module keeps."""
    plan = mixer.token_windows
    col, row = (part // stride for part in pixel)
    place = np.array([row * plan.width + col])
    keys, window = key_places(plan), window_of(plan, place)[0]
    left, top = keys.cols[window] * stride, keys.rows[window] * stride
    size = keys.sides * stride
    high, wide = plan.padded
    return Attention(
        weights_of(mixer, place)[0],
        np.stack([left, top, left + size, top + size], -1),
        keys.levels,
        (col * stride, row * stride, (col + 1) * stride, (row + 1) * stride),
        (wide * stride, high * stride),
    )


def norms(model: nn.Module, image: Image) -> list[np.ndarray]:
    """Return the Euclidean norm over the channels of each stage's output, before any output norm:
    a list of arrays (H, W).
    """
    backbone, sample = find_backbone(model), prepare(model, image)
    found: list[np.ndarray] = []
    hooks = add_norm_hooks(backbone, found)
    try:
        with evaluating(model), torch.no_grad():
            backbone(sample.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def add_norm_hooks(backbone: Backbone, found: list[np.ndarray]) -> list[Any]:
    """Let each stage append the norm of its output to a list; return the hooks."""

    def after(axis: int) -> Callable[..., None]:
        def append(_module: nn.Module, _args: Any, out: Any) -> None:
            maps = out if isinstance(out, (tuple, list)) else [out]
            found.extend(_array(x.norm(dim=axis)[0]) for x in maps)

        return append

    if isinstance(backbone, MixingConvNet):
        return [
            backbone.convnet.register_forward_hook(after(1)),
            backbone.stage.register_forward_hook(after(-1)),
        ]
    return [stage.register_forward_hook(after(-1)) for stage in backbone.layers]


def kernels(model: nn.Module) -> list[list[list[np.ndarray]]]:
    """Return the learned depth-wise kernels: of each block a list, of shape (C, k, k) each.

    FocalNet has one for each focal level (Eq. 4), none where a variant pools; the mixing blocks of
    MixFormer have one.
    """
    return [[kernels_of(mixer) for mixer in stage] for stage in mixers_of(find_backbone(model))]


def kernels_of(mixer: nn.Module) -> list[np.ndarray]:
    """Return the kernels of one modulation or attention, see :func:`kernels`."""
    return [_array(conv.weight[:, 0].detach()) for conv in _convolutions(mixer)]


def _convolutions(mixer: Any) -> list[Any]:
    if isinstance(mixer, WindowAttentionBlock):
        return [mixer.dwconv3x3[0]]
    levels = getattr(mixer, 'focal_layers', [])
    return [level[0] for level in levels if isinstance(level, nn.Sequential)]


def rim(kernel: np.ndarray) -> int:
    """Return how many rows and columns at each side of kernels (C, k, k) are zero in all channels:
    the rim that zero-padding to a larger kernel adds, until training changes it.
    """
    used = np.abs(kernel).max(0) > 0
    width = 0
    while 2 * width + 2 < used.shape[0] and not _ring(used, width).any():
        width += 1
    return width


def _ring(used: np.ndarray, at: int) -> np.ndarray:
    inside = used[at : len(used) - at, at : len(used) - at]
    return np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])


def receptive_fields(model: nn.Module) -> list[list[list[np.ndarray]]]:
    """Return what reaches a token's contexts z^1 to z^L of FocalNet from its surroundings: of each
    block a list of arrays (r, r), with r^l = 1 + the sum of k - 1 over the levels up to l.

    It is the weight of each token in the kernels of these levels, one after the other: its absolute
    value, averaged over the channels and divided by the maximum. The activations between the levels
    are left out, so that the field does not depend on a picture.
    """
    return [[fields_of(mixer) for mixer in stage] for stage in mixers_of(find_backbone(model))]


@torch.no_grad()
def fields_of(mixer: nn.Module) -> list[np.ndarray]:
    """Return the receptive fields of one modulation, see :func:`receptive_fields`."""
    if not isinstance(mixer, FocalModulation):
        return []
    fields, response = [], None
    for conv in _convolutions(mixer):
        kernel = conv.weight.detach().float().cpu()
        if response is None:
            response = kernel[:, 0]
        else:
            # One kernel after the other is the convolution of the kernels; conv2d correlates.
            pad, count = kernel.shape[-1] - 1, len(kernel)
            response = F.conv2d(response[None], kernel.flip(2, 3), padding=pad, groups=count)[0]
        strength = response.abs().mean(0)
        fields.append(_array(strength / strength.max().clamp(min=1e-30)))
    return fields


def biases(model: nn.Module) -> list[list[dict[str, np.ndarray]]]:
    """Return the learned biases B of Eq. 3: of each block a dict.

    ``'window'`` is the bias by the offset of the key from the query, shape (heads, 2 w - 1,
    2 w - 1) for a window of w tokens; the offset 0 is in the middle. ``'surroundings'`` has one for
    each query of the window and key, shape (heads, w^2, keys). ``'pooled 1'`` and so on are of the
    pooled maps, shape (heads, w + r - 1, w + r - 1) for a region of r sub-windows. The faster Focal
    Transformer computes B from the offset instead: ``'window'`` and ``'pooled 1'`` have offsets up
    to two windows, shape (heads, 4 w + 1, 4 w + 1).
    """
    found = [[biases_of(m) for m in stage] for stage in mixers_of(find_backbone(model))]
    if not any(bias for stage in found for bias in stage):
        raise ValueError(f'{type(find_backbone(model)).__name__} has no position biases')
    return found


@torch.no_grad()
def biases_of(mixer: Any) -> dict[str, np.ndarray]:
    """Return the biases of one module, see :func:`biases`."""

    def square(table: Tensor) -> np.ndarray:
        side = round(table.shape[1] ** 0.5)
        return _array(table.detach().unflatten(1, (side, side)))

    found: dict[str, np.ndarray] = {}
    if isinstance(mixer, (FocalAttention, WindowAttentionBlock)):
        found['window'] = square(mixer.relative_position_bias_table.t())
    if isinstance(mixer, FocalAttention):
        neighbours: Any = mixer.relative_position_bias_table_to_neighbors
        if neighbours is not None:
            found['surroundings'] = _array(neighbours[0].detach())
        for level, table in enumerate(mixer.relative_position_bias_table_to_windows(), 1):
            found[f'pooled {level}'] = square(table)
    for level, network in enumerate(getattr(mixer, 'coord2rpb_all', [])):
        reach = 2 * mixer.window_size
        weight = network[0].weight
        offset = torch.arange(-reach, reach + 1, device=weight.device, dtype=weight.dtype)
        grid = torch.stack(torch.meshgrid(offset, offset, indexing='ij'), -1)
        name = f'pooled {level}' if level else 'window'
        found[name] = _array(network(grid).permute(2, 0, 1))
    return found
