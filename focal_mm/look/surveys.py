"""All that sheets and pages show of a picture in a network, from one run."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..backbones.focal_modulation import FocalModulation
from ..kernels.window_plans import Windows
from .activation import ClassActivation
from .maps import (
    ATTENDING,
    KeyPlaces,
    add_norm_hooks,
    collect,
    key_places,
    read_contexts,
    weights_of,
    window_of,
)
from .samples import Backbone, Image, Sample, find_backbone, mixers_of, prepare, strides_of


@dataclass
class Queries:
    """What the tokens of a grid attend to, on average over the heads.

    Attributes:
        step (int): Rows and columns of tokens from one token of the grid to the next.
        rows (int): Rows of the grid.
        cols (int): Columns of the grid.
        windows (np.ndarray): Number of each token's window, shape (rows * cols).
        weights (np.ndarray): Shape (rows * cols, keys).
        keys (KeyPlaces): Where the keys of each window lie.
        plan (Windows): The windows of the map.
    """

    step: int
    rows: int
    cols: int
    windows: np.ndarray
    weights: np.ndarray
    keys: KeyPlaces
    plan: Windows


@dataclass
class Block:
    """What one block sees.

    Attributes:
        mixer (nn.Module): Its modulation or attention.
        maps (dict[str, list[np.ndarray]]): ``'gates'`` of each level; ``'contexts'``, their norms
            over the channels; ``'modulator'``, its norm; ``'spatial'``, MixFormer's spatial
            interaction. Arrays (H, W), those that the block has.
        levels (list[int]): Numbers of the focal levels of gates and contexts.
        channels (np.ndarray or None): MixFormer's channel interaction, shape (C / 2).
        queries (Queries or None): What tokens attend to.
    """

    mixer: nn.Module
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict)
    levels: list[int] = field(default_factory=list)
    channels: np.ndarray | None = None
    queries: Queries | None = None


@dataclass
class Survey:
    """What a network sees in a picture.

    Attributes:
        title (str): Name of the picture.
        model (str): Name of the model.
        random (bool): Whether the weights of the backbone are random.
        sample (Sample): The picture.
        backbone (StagedBackbone or MixingConvNet): The backbone.
        strides (list[int]): Side of a token in pixels, stage by stage.
        blocks (list[list[Block]]): ``[stage][block]``.
        norms (list[np.ndarray]): Norm of each stage's output, (H, W).
        activation (ClassActivation or None): A class-activation map.
    """

    title: str
    model: str
    random: bool
    sample: Sample
    backbone: Backbone
    strides: list[int]
    blocks: list[list[Block]]
    norms: list[np.ndarray]
    activation: ClassActivation | None = None

    @property
    def heading(self) -> str:
        """The picture, the model, and a warning of random weights."""
        warning = ' · RANDOM WEIGHTS, nothing was learned' if self.random else ''
        return f'{self.title} · {self.model}{warning}'


def survey(
    model: nn.Module,
    image: Image,
    title: str = '',
    name: str = '',
    random: bool = False,
    queries: int = 4096,
) -> Survey:
    """Run a network on a picture and collect what its blocks see.

    Args:
        model (nn.Module): The model.
        image (str, Path, np.ndarray, Tensor or Sample): The picture.
        title (str): Name of the picture. Default: none.
        name (str): Name of the model. Default: the class of its backbone.
        random (bool): Whether the weights of the backbone are random. Default: False.
        queries (int): Largest number of tokens of a map whose attention is computed. Default: 4096.
    """
    backbone, sample = find_backbone(model), prepare(model, image)
    norms: list[np.ndarray] = []
    hooks = add_norm_hooks(backbone, norms)
    try:
        blocks = collect(model, sample, nn.Module, '', lambda mixer: read_block(mixer, queries))
    finally:
        for hook in hooks:
            hook.remove()
    name = name or type(backbone).__name__
    return Survey(title, name, random, sample, backbone, strides_of(backbone), blocks, norms)


def read_block(mixer: Any, queries: int) -> Block:
    """Return what a modulation or attention keeps of a picture."""
    block = Block(mixer)
    if hasattr(mixer, 'gates'):
        gates = mixer.gates[0].float().cpu().numpy()
        height, width, count = gates.shape
        norms = [np.linalg.norm(level, axis=-1) for level in read_contexts(mixer)]
        block.maps['gates'] = list(np.moveaxis(gates, -1, 0))
        block.maps['contexts'] = [np.broadcast_to(norm, (height, width)) for norm in norms]
        block.levels = level_numbers(mixer, count)
    if hasattr(mixer, 'modulator'):
        block.maps['modulator'] = [mixer.modulator[0].float().norm(dim=-1).cpu().numpy()]
    if hasattr(mixer, 'spatial_weights'):
        block.maps['spatial'] = [mixer.spatial_weights[0].float().cpu().numpy()]
    if hasattr(mixer, 'channel_weights'):
        block.channels = mixer.channel_weights[0].float().cpu().numpy()
    if isinstance(mixer, ATTENDING) and hasattr(mixer, 'tokens'):
        block.queries = _read_queries(mixer, queries)
    return block


def level_numbers(mixer: FocalModulation, count: int) -> list[int]:
    """Return the numbers of the levels that a modulation sums: those from 1 on, or L alone."""
    first = 1 if count >= mixer.focal_level else mixer.focal_level
    return list(range(first, first + count))


def _read_queries(mixer: Any, most: int) -> Queries:
    plan = mixer.token_windows
    step = 1
    while -(-plan.height // step) * -(-plan.width // step) > most:
        step += 1
    rows, cols = np.arange(0, plan.height, step), np.arange(0, plan.width, step)
    places = (rows[:, None] * plan.width + cols).flatten()
    weights = weights_of(mixer, places).mean(1)
    windows = window_of(plan, places)
    return Queries(step, len(rows), len(cols), windows, weights, key_places(plan), plan)


def last_blocks(backbone: Backbone) -> list[tuple[int, int]]:
    """Return the stage and the number of the last block of each stage that has blocks."""
    return [(i, len(stage) - 1) for i, stage in enumerate(mixers_of(backbone)) if stage]
