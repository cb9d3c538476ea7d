"""ONNX files of a config and a checkpoint."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor
from torch.nn.functional import interpolate

from ..datasets.shapes import draw_scene
from ..export import largest_differences, parts_of, write_onnx
from .pictures import read_picture
from .predict import Predictor

# Size of the pictures that a graph is traced with: no map of a detector may have a side of 1, which
# torch.export takes for a constant.
EXAMPLE = (160, 224)


def export(cfg: Config, checkpoint: str, out: Path, image: Path | None = None) -> list[dict]:
    """Write a model's ONNX files and compare them with PyTorch.

    The comparison is on the picture as the config's test pipeline resizes it, and on the two
    smaller ones that the graph was traced with.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain.
        checkpoint (str): What mmengine takes.
        out (Path): The new file; that of a second stage is beside it.
        image (Path, optional): A picture. Default: a drawn one.

    Returns:
        list[dict]: For each file: ``file``, and by output ``shapes`` and the largest
        ``differences``.

    Raises:
        ValueError: If the picture cannot be read, or the model is of none of these kinds.
    """
    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):
        logging.getLogger(name).setLevel(logging.ERROR)
    pixels = read_image(image)
    predictor = Predictor(cfg, checkpoint, 'cpu')
    picture = prepare(predictor, pixels)
    example = interpolate(picture, EXAMPLE, mode='bilinear')
    checks: list[dict[str, Any]] = []
    maps: dict[str, Tensor] = {}
    for part in parts_of(predictor.model, torch.cat([example, example.flip(3)])):
        file = out.with_name(f'{out.stem}{part.name}.onnx')
        write_onnx(part, file)
        runs: list[tuple] = [(picture,), part.inputs]
        if part.name:
            regions = part.inputs[1].clone()
            regions[:, 0] = 0
            runs[0] = (list(maps.values()), regions[:5])
        differences: dict[str, float] = {}
        for inputs in runs:
            for name, value in largest_differences(part, file, inputs).items():
                differences[name] = max(value, differences.get(name, 0.0))
        with torch.no_grad():
            outputs = part.module(*runs[0])
        maps = maps or {name: value for name, value in outputs.items() if name.startswith('map')}
        checks.append(
            dict(
                file=file,
                shapes={name: list(value.shape) for name, value in outputs.items()},
                differences=differences,
            )
        )
    return checks


def read_image(image: Path | None) -> np.ndarray:
    """Return a picture, by default a drawn one, with the channels blue, green and red.

    Raises:
        ValueError: If the file is no picture.
    """
    if image is None:
        return np.ascontiguousarray(draw_scene(0, 'val', 0).image[..., ::-1])
    try:
        return read_picture(image)
    except ValueError as error:
        raise ValueError(f'{image}: {error}') from error


def prepare(predictor: Predictor, pixels: np.ndarray) -> Tensor:
    """Return a picture after the test pipeline, in the model's order of channels: (1, C, H, W)."""
    (batch,) = predictor.inferencer.preprocess([pixels], batch_size=1)
    data = batch[1] if predictor.library == 'mmdet' else batch
    (inputs,) = data['inputs']
    preprocessor = predictor.model.data_preprocessor
    # Of mmengine and OneDL's mmseg, of stock mmseg, of mmpretrain.
    names = ('_channel_conversion', 'channel_conversion', 'to_rgb')
    flips = any(getattr(preprocessor, name, False) for name in names)
    return (inputs.flip(0) if flips else inputs)[None].float()
