"""Networks by name, of this project and of others, in PyTorch and in what people deploy with."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..export import Part, quantize, to_onnx
from .runner import load_config

if TYPE_CHECKING:
    from .benchmark import Setting


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``NAME`` or ``NAME(key=value, ...)`` into the name and the arguments.

    Raises:
        ValueError: If the text is neither, or a value is not a literal.
    """
    name, bracket, arguments = text.partition('(')
    try:
        call = ast.parse(f'f({arguments}' if bracket else 'f()', mode='eval').body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        return name.strip(), {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f'{text}: not NAME or NAME(key=value, ...) with plain values, '
            "as FocalNet(arch='tiny_lrf', focal_windows=9)"
        ) from None


def build(text: str) -> 'nn.Module | Foreign':
    """Build a network.

    Args:
        text (str): Name of the network, with arguments as in :func:`parse`:

            - a backbone of the registry: ``FocalNet``, ``mmdet.SwinTransformer``,
              ``mmpretrain.ConvNeXt``;
            - a backbone of timm: ``timm.focalnet_tiny_lrf``;
            - a class in a file, which may import from its folder: ``path/focalnet.py:FocalNet``;
            - any of these by another road: ``compiled@NETWORK`` by ``torch.compile``,
              ``graphs@NETWORK`` with CUDA graphs, ``openvino@NETWORK``, ``onnxruntime@NETWORK``;
            - a Paddle class in a file, run in a separate process by a Python that has Paddle:
              ``paddle@path/python:path/mixformer.py:MixFormer_B4``;
            - the whole model of a config: ``configs/....py`` or ``mmdet::...``.

    Raises:
        ValueError: If there is no such network.
    """
    road, at, rest = text.partition('@')
    if at and road in _ROADS:
        net = build(rest)
        if not isinstance(net, nn.Module):
            raise ValueError(f'{text}: only a network in PyTorch can be compiled or exported')
        return _ROADS[road](net)
    name, arguments = parse(text)
    if name.startswith('paddle@'):
        parts = name.removeprefix('paddle@').split(':')
        if len(parts) != 3:
            raise ValueError(f'{name}: a Paddle network is paddle@PYTHON:FILE.py:CLASS')
        python, path, kind = parts
        return PaddleNet(python, path, kind, arguments)
    if '.py:' in name:
        return _class_of_file(*name.rsplit(':', 1))(**arguments)
    if name.endswith('.py'):
        cfg = load_config(name, options=arguments)
        if cfg.get('default_scope'):  # another than that of a config before it
            init_default_scope(cfg.default_scope)
        model = cfg.model
        for part in (model, model.get('backbone', {})):
            part.pop('init_cfg', None)
        return MODELS.build(model)
    scope, _, kind = name.rpartition('.')
    if scope == 'timm':
        import timm

        if kind not in timm.list_models():
            raise ValueError(f'{name}: timm has no such model; see timm.list_models()')
        return timm.create_model(kind, features_only=True, **arguments)
    if scope:
        init_default_scope(scope)
    if MODELS.get(name) is None:
        raise ValueError(
            f'{name}: no such backbone; give one of the registry (FocalNet, '
            'mmdet.SwinTransformer), timm.NAME, FILE.py:CLASS or a config'
        )
    return MODELS.build(dict(type=name, **arguments))


class Foreign(Protocol):
    """A network that PyTorch does not run."""

    def step(self, setting: 'Setting') -> None:
        """Run one step at a setting.

        Raises:
            ValueError: If it cannot run at this setting.
        """


class OpenVinoNet:
    """A network in OpenVINO, converted once for each size of image.

    Args:
        net (nn.Module): The network in PyTorch.
        calibration (sequence of Tensor): As in :class:`OnnxRuntimeNet`, by which 8-bit products are
            made here, too.
    """

    def __init__(self, net: nn.Module, calibration: Sequence[Tensor] = ()) -> None:
        try:
            import openvino
        except ImportError:
            raise ValueError('openvino@ needs OpenVINO: pip install openvino') from None
        net.eval()  # which returns nothing where a net has its own train()
        self.core, self.net, self.calibration = openvino.Core(), net, calibration
        self.compiled: dict[tuple[torch.Size, str], Any] = {}

    def step(self, setting: 'Setting') -> None:
        """Run a forward pass."""
        _refuse_all_but_forward('OpenVINO', setting, ('fp32', 'bf16'))
        self(_image(setting.batch, setting.size), setting.dtype)

    def __call__(self, image: Tensor, dtype: str = 'fp32') -> list[Tensor]:
        """Return the maps of images, shape (N, 3, H, W)."""
        key = (image.shape, dtype)
        if key not in self.compiled:
            self.compiled[key] = self._compile(image, dtype)
        return [torch.from_numpy(out) for out in self.compiled[key]([image.numpy()]).values()]

    def _compile(self, image: Tensor, dtype: str) -> Any:
        hints = dict(
            INFERENCE_PRECISION_HINT=dict(fp32='f32', bf16='bf16')[dtype],
            INFERENCE_NUM_THREADS=torch.get_num_threads(),
            PERFORMANCE_HINT='LATENCY',
        )
        with tempfile.TemporaryDirectory() as folder:
            file = _write_onnx(self.net, image, self.calibration, folder)
            return self.core.compile_model(file, 'CPU', hints)


class OnnxRuntimeNet:
    """A network in ONNX Runtime, exported once for each size of image.

    Args:
        net (nn.Module): The network in PyTorch.
        calibration (sequence of Tensor): Images from which the scales of 8-bit products follow.
            Default: none, and products are of float32.
    """

    def __init__(self, net: nn.Module, calibration: Sequence[Tensor] = ()) -> None:
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError:
            raise ValueError(
                'onnxruntime@ needs ONNX Runtime: pip install onnxruntime onnxscript'
            ) from None
        net.eval()
        self.net, self.calibration = net, calibration
        self.sessions: dict[torch.Size, Any] = {}

    def step(self, setting: 'Setting') -> None:
        """Run a forward pass."""
        _refuse_all_but_forward('ONNX Runtime', setting, ('fp32',))
        self(_image(setting.batch, setting.size))

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Return the maps of images, shape (N, 3, H, W)."""
        if image.shape not in self.sessions:
            self.sessions[image.shape] = self._session(image)
        return [
            torch.from_numpy(out)
            for out in self.sessions[image.shape].run(None, dict(image=image.numpy()))
        ]

    def _session(self, image: Tensor) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            file = _write_onnx(self.net, image, self.calibration, folder)
            return onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])


@lru_cache(maxsize=1)
def _image(batch: int, size: tuple[int, int]) -> Tensor:
    """Draw an image once for all steps: new memory would count as time of the network."""
    return torch.randn(batch, 3, *size)


def _write_onnx(net: nn.Module, image: Tensor, calibration: Sequence[Tensor], folder: str) -> Path:
    file = Path(folder) / 'net.onnx'
    to_onnx(net, (image,), input_names=['image']).save(file)
    if calibration:
        resized = (F.interpolate(one, image.shape[2:], mode='bilinear') for one in calibration)
        quantize(Part('', net, (image,)), file, ((one,) for one in resized))
    return file


def _refuse_all_but_forward(name: str, setting: 'Setting', dtypes: tuple[str, ...]) -> None:
    if setting.train or setting.device != 'cpu' or setting.dtype not in dtypes:
        raise ValueError(
            f'a peer in {name} is measured in a forward pass on the CPU, in {" or ".join(dtypes)}'
        )


class PaddleNet:
    """A Paddle network in a child process, because Paddle and torch conflict in one process.

    Args:
        python (str): Path of a Python interpreter that has Paddle.
        path (str): File that defines the network.
        name (str): Name of the class, or of a function that builds the network.
        arguments (dict): Arguments of the class or function.
    """

    child = """
import importlib.util, json, os, sys
import paddle
path, name, arguments = json.loads(sys.argv[1])
sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
spec = importlib.util.spec_from_file_location('peer', path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
net = getattr(module, name)(**arguments)
for line in sys.stdin:
    shape, train = json.loads(line)
    net.train() if train else net.eval()
    image = paddle.randn(shape)
    with paddle.set_grad_enabled(train):
        outs = net(image)
        if train:
            outs = outs if isinstance(outs, (list, tuple)) else [outs]
            sum(out.square().mean() for out in outs).backward()
            net.clear_gradients()
    print('step done', flush=True)
"""

    def __init__(self, python: str, path: str, name: str, arguments: dict[str, Any]) -> None:
        self.python = python
        self.process = subprocess.Popen(
            [python, '-c', self.child, json.dumps([path, name, arguments])],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads())),
        )

    def step(self, setting: 'Setting') -> None:
        """Run one step.

        Raises:
            ValueError: If the setting is not fp32 on the CPU, or the child process has ended.
        """
        if setting.dtype != 'fp32' or setting.device != 'cpu':
            raise ValueError('a peer in Paddle is measured in fp32 on the CPU only')
        try:
            shape = [setting.batch, 3, *setting.size]
            print(json.dumps([shape, setting.train]), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # then its output has ended too, see below
        for line in self.process.stdout or ():
            if line == 'step done\n':
                return
        raise ValueError(f'{self.python}: the process with Paddle ended, see above why')


# What makes a network in PyTorch take another road.
_ROADS: dict[str, Callable[[nn.Module], Any]] = dict(
    compiled=torch.compile,
    graphs=partial(torch.compile, mode='reduce-overhead'),
    openvino=OpenVinoNet,
    onnxruntime=OnnxRuntimeNet,
)


def _class_of_file(path: str, name: str) -> type:
    """Return a class of a file. Imports from mmdet 2 and its registration, as in the official
    detectors, are left out: what they bring is not used by a network.
    """
    if not Path(path).is_file():
        raise ValueError(f'{path}: no such file; a peer in a file is FILE.py:CLASS')
    sys.path.insert(0, str(Path(path).resolve().parent))
    tree = ast.parse(Path(path).read_bytes(), path)
    tree.body = [node for node in tree.body if not _of_mmdet2(node)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.decorator_list = [d for d in node.decorator_list if 'BACKBONES' not in ast.dump(d)]
    module = ModuleType(f'peer_{Path(path).stem}')
    sys.modules[module.__name__] = module
    exec(compile(tree, path, 'exec'), module.__dict__)
    if not hasattr(module, name):
        raise ValueError(f'{path}: has no class {name}')
    return getattr(module, name)


def _of_mmdet2(node: ast.stmt) -> bool:
    packages = ('mmcv_custom', 'mmdet', 'mmseg')
    return isinstance(node, ast.ImportFrom) and (
        node.level > 0 or (node.module or '').split('.')[0] in packages
    )
