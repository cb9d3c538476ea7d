"""Whole models as ONNX files, and an operator that ONNX lacks; see docs/export.md."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .kernels.adaptive_pool import adaptive_avg_pool2d
from .kernels.depthwise import widened

__all__ = [
    'CALIBRATION',
    'Part',
    'adaptive_avg_pool2d',
    'angle',
    'compare',
    'difference',
    'parts_of',
    'quantize',
    'regions_of',
    'to_onnx',
    'write_onnx',
]

# Number of pictures that 8-bit scales follow from.
CALIBRATION = 12
# Operations of 8 bits; those whose results are above zero, or nearly so, as GELU's above -0.17; and
# those that hand on what they take.
_QUANTIZED = ('Conv', 'Gemm', 'MatMul')
_ONE_SIGN = ('Gelu', 'HardSigmoid', 'HardSwish', 'Relu', 'Sigmoid', 'Softmax')
_ARRANGING = ('Flatten', 'MaxPool', 'Reshape', 'Squeeze', 'Transpose', 'Unsqueeze')
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
            regions = regions_of(image)
            yield Part('.regions', Regions(roi_head).eval(), (maps, regions))
    else:
        raise ValueError(
            f'{type(model).__name__}: only classifiers, segmentors and detectors are exported'
        )


def regions_of(image: Tensor) -> Tensor:
    """Return seven random regions of pictures, as a graph of a second stage takes them.

    Args:
        image (Tensor): Pictures, shape (N, C, H, W).
    """
    height, width = image.shape[2:]
    corners = torch.rand(7, 2, 2).sort(1).values * torch.tensor([width, height])
    numbers = torch.arange(7)[:, None] % len(image)
    return torch.cat([numbers, corners.flatten(1)], 1).to(image)


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
        names = list(part.module(*part.inputs))
    onnx = to_onnx(
        part.module, part.inputs, shapes, input_names=input_names(part), output_names=names
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(path)


def to_onnx(graph: nn.Module, inputs: tuple, shapes: Any = None, **names: Any) -> Any:
    """Return a graph in ONNX, in the form that OpenVINO and ONNX Runtime compute fastest.

    - Kernels of 11 and 13 columns are widened (:func:`.kernels.depthwise.widened`).
    - Layer norms of maps are those of tokens: OpenVINO has one operation for three axes, and takes
      the norm of four to pieces.
    - Weights are in the shape that they are multiplied in: otherwise OpenVINO leaves products in
      float32 that should be of 8 bits.

    Args:
        graph (nn.Module): The graph.
        inputs (tuple): Example inputs.
        shapes: The sizes that may vary, as ``torch.export.export`` takes them. Default: none.
        names: ``input_names`` and ``output_names``, as ``torch.onnx.export`` takes them.

    Returns:
        torch.onnx.ONNXProgram: The graph.

    Raises:
        ModuleNotFoundError: If onnx or onnxscript is missing.
    """
    with torch.no_grad(), widened(graph):
        program = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)
    program = program.run_decompositions(
        {
            torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
            torch.ops.aten.layer_norm.default: _layer_norm,
        }
    )
    onnx: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    from onnxscript import optimizer

    # What follows from a weight is no larger than it; other constants may be as large as maps.
    limit = max((weight.nbytes for weight in graph.parameters()), default=0)
    optimizer.optimize(onnx.model, input_size_limit=limit, output_size_limit=limit)
    return onnx


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, _: bool = True,
) -> Tensor:  # fmt: skip
    """Compute a layer norm, of a map (N, H, W, C) as of tokens (N, H * W, C)."""
    tokens = x.flatten(1, 2) if x.ndim == 4 and len(shape) == 1 else x
    return torch.native_layer_norm(tokens, shape, weight, bias, eps)[0].view(x.shape)


def _map(function: Callable, value: Any) -> Any:
    """Apply a function to the tensors in a nest of lists and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_map(function, item) for item in value)


def quantize(part: Part, path: Path, samples: Iterable[tuple]) -> None:
    """Change a file so that its products and convolutions are of 8-bit integers.

    Weights have a scale for each channel; the scales of what flows between layers follow from the
    mean of the extremes of samples (onnxruntime's static quantization). Zero lies in the middle of
    the 8 bits, which OpenVINO multiplies as they are, but for values of one sign. Everything else
    stays in float32, and so do depth-wise convolutions, which are slower in 8 bits.

    Args:
        part (Part): What the file was written from.
        path (Path): The file, which is replaced once the new one is whole.
        samples (iterable of tuple): Inputs as the graph takes them, of a dozen typical pictures.

    Raises:
        ModuleNotFoundError: If onnxruntime is missing.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = map(partial(_feed, part), samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    graph = onnx.load(path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    taken = [name for node in graph.node if node.op_type in _QUANTIZED for name in node.input]
    depthwise = {weight.name for weight in graph.initializer if weight.dims[1:2] == [1]}
    logging.getLogger().addFilter(_is_no_advice)
    try:
        with TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, path.name)
            quantize_static(
                path,
                new,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(_QUANTIZED),
                extra_options=dict(
                    # Extremes of single pictures would make the steps of all others coarse.
                    CalibMovingAverage=True,
                    ActivationSymmetric=True,
                    TensorQuantOverrides={
                        name: [dict(quant_type=QuantType.QUInt8, symmetric=False)]
                        for name in taken
                        if _has_one_sign(makers, name)
                    },
                ),
                nodes_to_exclude=[
                    node.name
                    for node in graph.node
                    if node.op_type == 'Conv' and depthwise.intersection(node.input)
                ],
            )
            new.replace(path)
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _has_one_sign(makers: dict[str, Any], name: str) -> bool:
    """Return whether the values of a name follow an activation that is never far below zero.

    Args:
        makers (dict): The node that makes each name.
        name (str): The name.
    """
    while name in makers and makers[name].op_type in _ARRANGING:
        name = makers[name].input[0]
    return name in makers and makers[name].op_type in _ONE_SIGN


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Return whether a message of the root logger is not onnxruntime's advice to optimize first."""
    return 'pre-processing' not in str(record.msg)


def input_names(part: Part) -> list[str]:
    """Return the names that the inputs of a file have, in order."""
    if not part.name:
        return ['image']
    maps, _ = part.inputs
    return [*(f'map{i}' for i in range(len(maps))), 'regions']


def _feed(part: Part, inputs: tuple) -> dict[str, Any]:
    """Return inputs of a graph as onnxruntime takes them."""
    flat: list[Tensor] = []
    _map(flat.append, [list(value) if isinstance(value, list) else value for value in inputs])
    return {name: value.numpy() for name, value in zip(input_names(part), flat)}


def compare(part: Part, path: Path, inputs: tuple) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, PyTorch's value and onnxruntime's value of each output.

    Args:
        part (Part): What the file was written from.
        path (Path): The file.
        inputs (tuple): As the graph takes them, of any size.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    with torch.no_grad():
        expected = part.module(*inputs)
    found = session.run(list(expected), _feed(part, inputs))
    for (name, value), array in zip(expected.items(), found):
        yield name, value, torch.from_numpy(array)


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest value where that is above 1.

    Of labels it is the share that differs.
    """
    if not expected.is_floating_point():
        return float((expected != found).float().mean())
    scale = max(1.0, float(expected.abs().max()))
    return float((expected - found).abs().max()) / scale


def angle(expected: Tensor, found: Tensor) -> float:
    """Return 1 minus the cosine between two outputs; of labels, the share that differs."""
    if not expected.is_floating_point():
        return difference(expected, found)
    first, second = expected.double().flatten(), found.double().flatten()
    return 1 - float(torch.nn.functional.cosine_similarity(first, second, 0))
