"""From a picture to what a network gets, and the network within a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..backbones.base import StagedBackbone
from ..backbones.mixing_convnets import MixingConvNet
from ..config import datasets_of, library, type_name

# Of ImageNet's RGB values, for a backbone that is in no model.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Backbone = StagedBackbone | MixingConvNet


@dataclass
class Sample:
    """A picture as a model gets it.

    Attributes:
        inputs (Tensor): What the network takes, shape (1, C, H, W).
        picture (np.ndarray): The same picture for the eye, RGB in 8 bits, shape (H', W', 3). H and
            W may be larger, by the padding at the bottom and at the right.
        data_samples (list or None): What the model's library keeps of the picture.
    """

    inputs: Tensor
    picture: np.ndarray
    data_samples: list | None = None


Image = str | Path | np.ndarray | Tensor | Sample


def find_backbone(model: nn.Module) -> Backbone:
    """Return the backbone within a model: the first of this project, or the model itself.

    Raises:
        ValueError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, (StagedBackbone, MixingConvNet)):
            return module
    raise ValueError(
        f'{type(model).__name__} has no FocalNet, FocalTransformer, MixFormer, MixingResNet or '
        'MixingMobileNetV2 to look into'
    )


def mixers_of(backbone: Backbone) -> list[list[nn.Module]]:
    """Return the modulation or attention of each block, stage by stage; the convolutional stages of
    a mixing ConvNet have none.
    """
    if isinstance(backbone, MixingConvNet):
        return [[], [], [], [block.attn for block in backbone.stage.blocks]]  # type: ignore[misc]
    return [
        [block.modulation if hasattr(block, 'modulation') else block.attn for block in stage.blocks]
        for stage in backbone.layers
    ]


def strides_of(backbone: Backbone) -> list[int]:
    """Return the side of a token in pixels, stage by stage."""
    first = 4 if isinstance(backbone, MixingConvNet) else backbone.patch_embed.patch_size
    return [first * 2**i for i in range(len(mixers_of(backbone)))]


def prepare(
    model: nn.Module, image: Image, cfg: Config | None = None, whole: bool = False
) -> Sample:
    """Turn a picture into what a model gets, as its test pipeline and data preprocessor do.

    Args:
        model (nn.Module): The model. A backbone alone gets the picture in its own size, normalized
            by ImageNet's mean and standard deviation.
        image (str, Path, np.ndarray, Tensor or Sample): A file; pixels as mmcv reads them, BGR or
            grey, shape (H, W, 3) or (H, W); or what the network takes, shape (C, H, W) or
            (1, C, H, W). A sample is returned as it is.
        cfg (Config, optional): The config whose test pipeline is applied. Default: the model's
            ``cfg``, which OpenMMLab's ``init_model`` sets; without one there is no pipeline.
        whole (bool): Leave out the pipeline's crops. Default: False.

    Raises:
        ValueError: If the picture cannot be read, or has the wrong shape.
    """
    if isinstance(image, Sample):
        return image
    device = next(model.parameters()).device
    if isinstance(image, Tensor):
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or len(batch) != 1:
            raise ValueError(
                f'an image of shape {tuple(image.shape)}: give one, (C, H, W) or (1, C, H, W)'
            )
        low, high = batch.min(), batch.max()
        scaled = (batch[0] - low) / (high - low).clamp(min=1e-12) * 255
        return Sample(batch.to(device), _for_the_eye(scaled, bgr=False))

    cfg = cfg or getattr(model, 'cfg', None)
    steps = pipeline_of(cfg)
    if whole:
        steps = [step for step in steps if not crops(step)]
    colors = [step.get('color_type') for step in steps if type_name(step).startswith('LoadImage')]
    pixels = _read(image, next(filter(None, colors), 'color'))
    preprocessor = getattr(model, 'data_preprocessor', None)
    if preprocessor is None:
        return _alone(find_backbone(model), pixels, device)
    data: dict[str, Any] = dict(inputs=torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    if cfg and steps:
        height, width = pixels.shape[:2]
        data = dict(
            img=pixels,
            img_shape=(height, width),
            ori_shape=(height, width),
            img_path=str(image) if isinstance(image, (str, Path)) else '',
            img_id=0,
            seg_fields=[],
            bbox=np.array([[0, 0, width, height]], np.float32),  # mmpose: the whole is one person
            bbox_score=np.ones(1, np.float32),
        )
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or library(cfg)):
            apply = Compose([step for step in steps if not type_name(step).startswith('Load')])
        data = apply(data)
    samples = data.get('data_samples')
    packed = dict(inputs=[data['inputs']], data_samples=None if samples is None else [samples])
    packed = preprocessor(packed, False)
    if not isinstance(packed['inputs'], Tensor):  # mmengine's default, which only moves the data
        return _alone(find_backbone(model), data['inputs'].permute(1, 2, 0).numpy(), device)
    return Sample(packed['inputs'], _for_the_eye(data['inputs']), packed.get('data_samples'))


def pipeline_of(cfg: Config | None) -> list:
    """Return the steps of a config's test pipeline, none without a config or pipeline."""
    loaders = [cfg.get(key) for key in ('test_dataloader', 'val_dataloader')] if cfg else []
    for dataset in datasets_of(next(filter(None, loaders), None)):
        return dataset.pipeline
    return []


def crops(step: dict) -> bool:
    """Return whether a step of a pipeline cuts a picture."""
    return 'Crop' in type_name(step)


def _read(image: str | Path | np.ndarray, color: str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        pixels: Any = image
    else:
        pixels = mmcv.imread(str(Path(image).expanduser()), color)
    if pixels is None:
        raise ValueError(f'{image}: not a picture')
    if pixels.ndim == 2 and color != 'grayscale':
        pixels = np.stack([pixels] * 3, -1)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or not pixels.size:
        raise ValueError(f'pixels of shape {pixels.shape}: give (H, W, 3) or (H, W)')
    return pixels


def _alone(backbone: Backbone, pixels: np.ndarray, device: torch.device) -> Sample:
    channels = getattr(backbone, 'in_channels', 3)
    if channels != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f'a picture of {pixels.shape[2]} channels for a backbone of in_channels={channels}: '
            'give the tensor that the network takes'
        )
    rgb = np.ascontiguousarray(pixels[..., ::-1])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    inputs = (torch.from_numpy(rgb).permute(2, 0, 1) - mean) / std
    return Sample(inputs[None].to(device), rgb)


def _for_the_eye(pixels: Tensor, bgr: bool = True) -> np.ndarray:
    """Return pixels (C, H, W) from 0 to 255 as RGB in 8 bits, whatever C is."""
    three = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    three = three.flip(0) if bgr else three
    return three.permute(1, 2, 0).clamp(0, 255).byte().cpu().contiguous().numpy()


def require_inside(query: Sequence[float]) -> None:
    """Raise a ValueError if a place, x and y as parts of width and height, is not in a picture."""
    if not all(0 <= part <= 1 for part in query):
        raise ValueError(
            f'query {" ".join(map(str, query))}: give x and y from 0 to 1, parts of the width and '
            'of the height'
        )


def pixel_of(query: tuple[float, float], picture: np.ndarray) -> tuple[int, int]:
    """Return the pixel, x and y, of a place given as parts of a picture's width and height.

    Raises:
        ValueError: If it lies outside.
    """
    require_inside(query)
    height, width = picture.shape[:2]
    return min(int(query[0] * width), width - 1), min(int(query[1] * height), height - 1)
