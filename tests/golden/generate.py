"""Write a golden case: the outputs of an official class for weights that follow from their names.

    python tests/golden/generate.py focalnet_tiny --family focalnet --shape 1 3 224 224 \\
        --class ~/FocalNet/classification/focalnet.py:FocalNet \\
        --arguments '{"embed_dim": 96, "depths": [2, 2, 6, 2], "focal_levels": [3, 3, 3, 3]}'

writes ``focalnet_tiny.json`` (the arguments, and every checkpoint key with its shape) and
``focalnet_tiny.npz`` into ``tests/data/golden``. The class is a module of PyTorch or a layer of
Paddle, in its own file and with whatever packages that file imports; no code of it comes into this
repository. ``filler.py`` beside the cases rebuilds weights and input from their names.

A class that returns maps, as detection backbones do, is recorded as it is. Of a classifier, which
returns logits, the last block of each stage is recorded as well (``--blocks``).

An output of four dimensions is an (N, C, H, W) map, of which the ``.npz`` holds every eighth
channel as ``out0``, ``out1``, ...; ``stat0``, ... hold mean, standard deviation and largest
absolute value over all channels.
"""

import argparse
import importlib.util
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / 'data' / 'golden'
STATISTICS = ('running_mean', 'running_var', '_mean', '_variance')  # PyTorch's names and Paddle's


def import_file(path: Path) -> ModuleType:
    """Import a file that may import its neighbors."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f'{path}: no such Python file')
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_class(path: str) -> Callable:
    """Import a class from ``FILE:CLASS``."""
    file, _, name = path.rpartition(':')
    if not file:
        raise ValueError(f'{path}: give FILE:CLASS, such as focalnet.py:FocalNet')
    return getattr(import_file(Path(file).expanduser()), name)


filler = import_file(DATA / 'filler.py')


class TorchNetwork:
    """An official network of PyTorch, in evaluation mode.

    Args:
        build (Callable): The class.
        arguments (dict): Its arguments.
    """

    def __init__(self, build: Callable, arguments: dict[str, Any]) -> None:
        self.net = build(**arguments).eval()

    def checkpoint(self) -> dict[str, list[int]]:
        """Return name and shape of each parameter and norm statistic, in their order."""
        parameters = {name for name, _ in self.net.named_parameters(remove_duplicate=False)}
        return {
            name: list(tensor.shape)
            for name, tensor in self.net.state_dict().items()
            if name in parameters or name.endswith(STATISTICS)
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Load weights of the network's own shapes."""
        missing, unexpected = self.net.load_state_dict(self._tensors(state), strict=False)
        assert not unexpected and not set(missing) & set(self.checkpoint())

    def load_official(self, state: dict[str, np.ndarray]) -> None:
        """Let the network's ``init_weights(file)`` fit weights of other shapes."""
        import torch

        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder, 'checkpoint.pth'))
            torch.save({'model': self._tensors(state)}, file)
            self.net.init_weights(file)
        self.net.eval()

    def run(self, image: np.ndarray, blocks: Sequence[str]) -> tuple[list[np.ndarray], Any]:
        """Return the outputs of the modules named ``blocks``, and that of the network."""
        import torch

        seen: dict[str, Any] = {}
        for name in blocks:
            self.net.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: seen.update({name: out})
            )
        with torch.no_grad():
            out = self.net(torch.from_numpy(image))
        return [seen[name].numpy() for name in blocks], out

    def module_names(self) -> list[str]:
        """Return the names of all submodules."""
        return [name for name, _ in self.net.named_modules()]

    @staticmethod
    def _tensors(state: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


class PaddleNetwork(TorchNetwork):
    """An official network of Paddle, in evaluation mode."""

    def __init__(self, build: Callable, arguments: dict[str, Any]) -> None:
        self.net = build(**arguments)
        self.net.eval()

    def checkpoint(self) -> dict[str, list[int]]:
        parameters = {name for name, _ in self.net.named_parameters()}
        return {
            name: list(tensor.shape)
            for name, tensor in self.net.state_dict().items()
            if name in parameters or name.endswith(STATISTICS)
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        _, unexpected = self.net.set_state_dict(state)
        assert not unexpected

    def load_official(self, state: dict[str, np.ndarray]) -> None:
        raise SystemExit('--pretrain: only official detection backbones of PyTorch fit weights')

    def run(self, image: np.ndarray, blocks: Sequence[str]) -> tuple[list[np.ndarray], Any]:
        import paddle

        seen: dict[str, Any] = {}
        for name, layer in self.net.named_sublayers():
            if name in blocks:
                layer.register_forward_post_hook(
                    lambda layer, args, out, name=name: seen.update({name: out})
                )
        with paddle.no_grad():
            out = self.net(paddle.to_tensor(image))
        return [seen[name].numpy() for name in blocks], out

    def module_names(self) -> list[str]:
        return [name for name, _ in self.net.named_sublayers()]


def last_blocks(names: list[str]) -> list[str]:
    """Return the last block of each stage, ``layers.STAGE.blocks.BLOCK``, of all module names."""
    last: dict[int, int] = {}
    for name in names:
        if match := re.fullmatch(r'layers\.(\d+)\.blocks\.(\d+)', name):
            stage, block = map(int, match.groups())
            last[stage] = max(block, last.get(stage, 0))
    return [f'layers.{stage}.blocks.{block}' for stage, block in sorted(last.items())]


def as_map(output: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Bring the output of a block into the layout (N, C, H, W).

    Args:
        output (np.ndarray): Tokens (N, H * W, C), or a map (N, H, W, C) or (N, C, H, W).
        image_shape (Sequence[int]): Shape (N, 3, H, W) of the input, of which a map has
            a power of two as its stride.

    Raises:
        ValueError: If no stride fits.
    """
    for stride in (2**power for power in range(8)):
        height, width = (-(-side // stride) for side in image_shape[2:])
        if output.ndim == 3 and output.shape[1] == height * width:
            output = output.reshape(output.shape[0], height, width, -1)
        if output.ndim == 4 and output.shape[1:3] == (height, width):
            return output.transpose(0, 3, 1, 2)
        if output.ndim == 4 and output.shape[2:] == (height, width):
            return output
    raise ValueError(f'a block returns shape {output.shape}, which is no map of the input')


def write(out: Path, case: dict[str, Any], outputs: list[np.ndarray]) -> None:
    """Write ``NAME.json`` and ``NAME.npz``; see the head of this file for their contents."""
    arrays = {}
    for index, output in enumerate(outputs):
        exact = output.astype(np.float64)
        arrays[f'out{index}'] = output[:, ::8] if output.ndim == 4 else output
        arrays[f'stat{index}'] = np.array([exact.mean(), exact.std(), np.abs(exact).max()])
    out.mkdir(parents=True, exist_ok=True)
    (out / f'{case["name"]}.json').write_text(json.dumps(case, indent=1))
    np.savez_compressed(out / f'{case["name"]}.npz', **arrays)


def generate(
    name: str,
    build: Callable,
    family: str,
    source: str,
    arguments: dict[str, Any],
    shape: Sequence[int],
    pretrain: tuple[Callable, dict[str, Any]] | None = None,
    blocks: Sequence[str] | None = None,
    out: Path = DATA,
) -> None:
    """Run an official class and write the case.

    Args:
        name (str): Name of the case, from which the input follows.
        build (Callable): The official class.
        family (str): ``'focalnet'``, ``'focal_transformer'`` or ``'mixformer'``.
        source (str): Where the class comes from.
        arguments (dict): Arguments of the class, under its own names.
        shape (Sequence[int]): Shape (N, 3, H, W) of the input.
        pretrain (tuple, optional): Class and arguments of the network that the checkpoint belongs
            to, where it is another one, as the classifier is for a detection backbone. The
            ``init_weights(file)`` of ``build`` then fits the weights. The checkpoint gets the
            parameters that ``build`` has in addition, such as output norms.
        blocks (Sequence[str], optional): Names of the modules to record beside the output.
            Default: the last block of each stage if the class returns one tensor, else none.
        out (Path): Folder for the two files.
    """
    is_torch = any(base.__module__.startswith('torch.') for base in inspect.getmro(build))
    network = TorchNetwork if is_torch else PaddleNetwork
    net = network(build, arguments)
    checkpoint = net.checkpoint()
    if pretrain is not None:
        checkpoint = {**checkpoint, **network(*pretrain).checkpoint()}
    state = filler.state_dict(checkpoint)
    if pretrain is None:
        net.load(state)
    else:
        net.load_official(state)
    image = filler.image(name, shape)
    recorded, returned = net.run(
        image, last_blocks(net.module_names()) if blocks is None else blocks
    )
    maps = [as_map(output, shape) for output in recorded]
    if isinstance(returned, dict):
        returned = list(returned.values())
    if isinstance(returned, (list, tuple)):
        outputs = [*(maps if blocks else ()), *(output.numpy() for output in returned)]
        expect = 'the feature maps that the class returns'
    else:
        outputs = [*maps, returned.numpy()]
        expect = (
            'raw stage outputs before downsampling and before any output norm, '
            'then the classification logits'
        )
    case = {'family': family, 'source': source, 'model': arguments}
    if pretrain is not None:
        case['pretrain'] = pretrain[1]
    case |= {
        'expect': expect,
        'name': name,
        'input_shape': list(shape),
        'outputs': [list(output.shape) for output in outputs],
        'checkpoint': checkpoint,
    }
    write(out, case, outputs)


def main() -> None:
    """Read the command line and write one case."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0], epilog='More in the head of this file.'
    )
    parser.add_argument('name', help='name of the case and of its two files')
    parser.add_argument(
        '--class',
        dest='build',
        required=True,
        metavar='FILE:CLASS',
        help='the official class, in its own file',
    )
    parser.add_argument(
        '--family', required=True, choices=['focalnet', 'focal_transformer', 'mixformer']
    )
    parser.add_argument(
        '--arguments',
        type=json.loads,
        default={},
        metavar='JSON',
        help='arguments of the class, under its own names',
    )
    parser.add_argument(
        '--pretrain',
        type=json.loads,
        metavar='JSON',
        help='arguments of the network that the checkpoint belongs to, where they differ; the '
        "class's init_weights(file) fits the weights",
    )
    parser.add_argument(
        '--pretrain-class', metavar='FILE:CLASS', help='its class, where that differs too'
    )
    parser.add_argument('--shape', type=int, nargs=4, default=[1, 3, 224, 224], metavar='N')
    parser.add_argument(
        '--blocks',
        nargs='*',
        metavar='MODULE',
        help='modules whose outputs are recorded, by their names in the class; '
        'default: the last block of each stage of a classifier',
    )
    parser.add_argument('--source', help='where the class comes from; default: FILE:CLASS')
    parser.add_argument('--out', type=Path, default=DATA, help=f'default: {DATA}')
    args = parser.parse_args()

    try:
        build = import_class(args.build)
        owner = import_class(args.pretrain_class) if args.pretrain_class else build
    except (FileNotFoundError, AttributeError, ValueError) as error:
        parser.error(str(error))
    generate(
        args.name,
        build,
        args.family,
        args.source or Path(args.build).name,
        args.arguments,
        args.shape,
        None if args.pretrain is None else (owner, args.pretrain),
        args.blocks,
        args.out,
    )
    print(f'{args.out / args.name}.json and .npz written')


if __name__ == '__main__':
    main()
