"""ONNX files of a config and a checkpoint."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor
from torch.nn.functional import interpolate

from ..datasets.shapes import draw_scene
from ..export import Part, angle, compare, difference, parts_of, quantize, regions_of, write_onnx
from .pictures import read_picture
from .predict import Predictor

# Size of the pictures that a graph is traced with: no map of a detector may have a side of 1, which
# torch.export takes for a constant.
EXAMPLE = (160, 224)


def export(
    cfg: Config,
    checkpoint: str,
    out: Path,
    image: Path | None = None,
    calibration: Sequence[Path] = (),
) -> list[dict]:
    """Write a model's ONNX files and compare them with PyTorch.

    The comparison is on the picture as the config's test pipeline resizes it, and on the two
    smaller ones that the graph was traced with.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain.
        checkpoint (str): What mmengine takes.
        out (Path): The new file; that of a second stage is beside it.
        image (Path, optional): A picture. Default: a drawn one.
        calibration (sequence of Path): Pictures from which the scales of 8-bit products follow.
            Default: none, and products are of float32.

    Returns:
        list[dict]: For each file: ``file``, and by output ``shapes`` and the largest
        ``differences``: relative ones, or with 8 bits 1 minus the cosine.

    Raises:
        ValueError: If a picture cannot be read, or the model is of none of these kinds.
    """
    for name in ('torch.onnx', 'onnxscript', 'onnx_ir'):
        logging.getLogger(name).setLevel(logging.ERROR)
    pixels = read_image(image)
    calibrating = [read_image(path) for path in calibration]
    predictor = Predictor(cfg, checkpoint, 'cpu')
    picture = prepare(predictor, pixels)
    samples = [prepare(predictor, pixels) for pixels in calibrating]
    example = interpolate(picture, EXAMPLE, mode='bilinear')
    first, *rest = parts_of(predictor.model, torch.cat([example, example.flip(3)]))

    def inputs(part: Part, picture: Tensor) -> tuple:
        """Return what a graph takes of a picture."""
        if part is first:
            return (picture,)
        with torch.no_grad():
            outputs = first.module(picture)
        maps = [value for name, value in outputs.items() if name.startswith('map')]
        return maps, regions_of(picture)

    checks: list[dict[str, Any]] = []
    measure = angle if samples else difference
    for part in (first, *rest):
        file = out.with_name(f'{out.stem}{part.name}.onnx')
        write_onnx(part, file)
        if samples:
            quantize(part, file, (inputs(part, sample) for sample in samples))
        shapes: dict[str, list[int]] = {}
        differences: dict[str, float] = {}
        for run in (inputs(part, picture), part.inputs):
            for name, expected, found in compare(part, file, run):
                shapes.setdefault(name, list(expected.shape))
                value = measure(expected, found)
                differences[name] = max(value, differences.get(name, 0.0))
        checks.append(dict(file=file, shapes=shapes, differences=differences))
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
