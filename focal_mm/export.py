"""Whole models as ONNX files, and an operator that ONNX lacks; see docs/export.md."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .kernels.adaptive_pool import adaptive_avg_pool2d

__all__ = ['Part', 'adaptive_avg_pool2d', 'largest_differences', 'parts_of', 'write_onnx']

# Heads of two stages whose RoI heads can be called without what other heads found.
_ROI_HEADS = ('StandardRoIHead', 'CascadeRoIHead')


class Whole(nn.Module):
    """A model from the pixels of pictures to what its head says.

    Args:
        model (nn.Module): A model of OpenMMLab with a ``data_preprocessor``.
        head (Callable): Takes the model and the normalized pictures, and returns named outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, head: Callable[[nn.Module, Tensor], dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        preprocessor: Any = model.data_preprocessor
        normalizes = getattr(preprocessor, '_enable_normalize', False)
        mean, std = (preprocessor.mean, preprocessor.std) if normalizes else (0.0, 1.0)
        self.register_buffer('mean', torch.as_tensor(mean).reshape(1, -1, 1, 1).clone())
        self.register_buffer('std', torch.as_tensor(std).reshape(1, -1, 1, 1).clone())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return what the head says of pictures.

        Args:
            image (Tensor): Values 0 to 255 in the model's order of channels, shape (N, C, H, W).
        """
        return self.head(self.model, (image - self.mean) / self.std)


class Regions(nn.Module):
    """The second stage of a detector: from maps and regions to classes, boxes and masks.

    Args:
        roi_head (nn.Module): A ``StandardRoIHead`` or ``CascadeRoIHead`` of mmdet.
    """

    def __init__(self, roi_head: nn.Module) -> None:
        super().__init__()
        self.roi_head: Any = roi_head

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> dict[str, Tensor]:
        """Return scores (R, classes + 1), box deltas and mask logits of regions.

        A cascade returns them for each of its stages.

        Args:
            maps (sequence of Tensor): The maps of the neck, as the file of the first stage has
                them.
            regions (Tensor): Number of the picture in the batch, x1, y1, x2, y2 in pixels; shape
                (R, 5).
        """
        head = self.roi_head
        outputs = {}
        for kind in ('bbox', 'mask'):
            if not getattr(head, f'with_{kind}'):
                continue
            extractors = getattr(head, f'{kind}_roi_extractor')
            stages = getattr(head, f'{kind}_head')
            if not isinstance(stages, nn.ModuleList):
                stages, extractors = [stages], [extractors]
            for i, (stage, extractor) in enumerate(zip(stages, extractors)):
                prefix = f'stage{i}_' if len(stages) > 1 else ''
                found = stage(_pool(extractor, maps, regions))
                if kind == 'bbox':
                    outputs[f'{prefix}scores'] = found[0].softmax(-1)
                    outputs[f'{prefix}deltas'] = found[1]
                else:
                    outputs[f'{prefix}masks'] = found
        return outputs


def _pool(extractor: Any, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
    """Pool each region from the map of its size, as mmdet's ``SingleRoIExtractor``.

    mmdet selects the regions of each map, whose number a graph does not know. Here each map pools
    all regions, and those of other maps are multiplied by zero.
    """
    from torchvision.ops import roi_align

    layers = extractor.roi_layers
    level = extractor.map_roi_levels(regions, len(layers))
    pooled = []
    for i, (layer, features) in enumerate(zip(layers, maps)):
        found = roi_align(
            features,
            regions,
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        pooled.append(found * (level == i).to(found)[:, None, None, None])
    return torch.stack(pooled).sum(0)


class Part(NamedTuple):
    """A graph of a model, which becomes one file.

    Attributes:
        name (str): What is appended to the file's name: ``''``, or ``'.regions'``.
        module (nn.Module): The graph.
        inputs (tuple): Example inputs, with batches of two.
    """

    name: str
    module: nn.Module
    inputs: tuple


def parts_of(model: nn.Module, image: Tensor) -> Iterator[Part]:
    """Yield the graphs that ONNX can hold of a model.

    - A classifier: ``scores`` (N, classes).
    - A segmentor: ``logits`` (N, classes, H, W) and ``labels`` (N, H, W).
    - A detector: the maps of its neck and what its dense head says of each, without the selection
      of boxes; their number depends on the picture, and mmdet selects them in Python. Detectors of
      two stages have a second graph, for regions.

    Args:
        model (nn.Module): A model of mmdet, mmseg or mmpretrain in evaluation mode.
        image (Tensor): Pictures of an example, shape (2, C, H, W).

    Raises:
        ValueError: If the model is none of these kinds.
    """
    network: Any = model
    if hasattr(network, 'decode_head'):
        yield Part('', Whole(model, _segment).eval(), (image,))
    elif type(model).__name__ == 'ImageClassifier':
        yield Part('', Whole(model, _classify).eval(), (image,))
    elif hasattr(network, 'extract_feat'):
        whole = Whole(model, _detect).eval()
        yield Part('', whole, (image,))
        roi_head: Any = getattr(network, 'roi_head', None)
        if type(roi_head).__name__ in _ROI_HEADS:
            with torch.no_grad():
                outputs = whole(image)
            maps = [value for name, value in outputs.items() if name.startswith('map')]
            height, width = image.shape[2:]
            corners = torch.rand(7, 2, 2).sort(1).values * torch.tensor([width, height])
            regions = torch.cat([torch.arange(7)[:, None] % 2, corners.flatten(1)], 1).to(image)
            yield Part('.regions', Regions(roi_head).eval(), (maps, regions))
    else:
        raise ValueError(
            f'{type(model).__name__}: only classifiers, segmentors and detectors are exported'
        )


def _classify(model: Any, image: Tensor) -> dict[str, Tensor]:
    logits = model.head(model.extract_feat(image))
    multilabel = 'MultiLabel' in type(model.head).__name__
    return dict(scores=logits.sigmoid() if multilabel else logits.softmax(-1))


def _segment(model: Any, image: Tensor) -> dict[str, Tensor]:
    logits = model.encode_decode(image, [dict(img_shape=tuple(image.shape[2:]))])
    if logits.shape[1] == 1:
        labels = (logits.sigmoid() > model.decode_head.threshold)[:, 0].long()
    else:
        labels = logits.argmax(1)
    return dict(logits=logits, labels=labels)


def _detect(model: Any, image: Tensor) -> dict[str, Tensor]:
    maps = model.extract_feat(image)
    outputs = {f'map{i}': value for i, value in enumerate(maps)}
    head: Any = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if not hasattr(head, 'predict_by_feat') or hasattr(model, 'decoder'):
        return outputs  # heads of queries take more than maps
    names = ('scores', 'boxes')
    for i, values in enumerate(head(maps)):
        name = names[i] if i < len(names) else f'output{i}'
        values = values if isinstance(values, (list, tuple)) else [values]
        outputs |= {f'{name}{level}': value for level, value in enumerate(values)}
    return outputs


def write_onnx(part: Part, path: Path) -> None:
    """Write a graph for any number of pictures or regions, and pictures of any size.

    Args:
        part (Part): What :func:`parts_of` yields.
        path (Path): The new file. Weights of more than 2 GB go into files beside it.

    Raises:
        ModuleNotFoundError: If onnx or onnxscript is missing.
    """
    any_size = torch.export.Dim.DYNAMIC
    shapes = _map(
        lambda value: dict.fromkeys((0, 2, 3) if value.ndim == 4 else (0,), any_size), part.inputs
    )
    with torch.no_grad():
        program = torch.export.export(part.module, part.inputs, dynamic_shapes=shapes, strict=False)
        names = list(part.module(*part.inputs))
    program = program.run_decompositions(
        {torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d}
    )
    inputs = ['image']
    if part.name:
        maps, _ = part.inputs
        inputs = [*(f'map{i}' for i in range(len(maps))), 'regions']
    onnx: Any = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=inputs, output_names=names
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(path)


def _map(function: Callable, value: Any) -> Any:
    """Apply a function to the tensors in a nest of lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_map(function, item) for item in value)


def largest_differences(part: Part, path: Path, inputs: tuple) -> dict[str, float]:
    """Return, for each output, the largest difference between onnxruntime and PyTorch.

    It is relative to the largest value of PyTorch's output where that is above 1; of labels it is
    the share of pixels that differ.

    Args:
        part (Part): What the file was written from.
        path (Path): The file.
        inputs (tuple): As the graph takes them, of any size.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = part.module(*inputs)
    flat: list[Tensor] = []
    _map(flat.append, [list(value) if isinstance(value, list) else value for value in inputs])
    feed = {node.name: value.numpy() for node, value in zip(session.get_inputs(), flat)}
    found = session.run(list(expected), feed)
    differences = {}
    for (name, value), array in zip(expected.items(), found):
        other = torch.from_numpy(array)
        if not value.is_floating_point():
            differences[name] = float((value != other).float().mean())
        else:
            scale = max(1.0, float(value.abs().max()))
            differences[name] = float((value - other).abs().max()) / scale
    return differences
