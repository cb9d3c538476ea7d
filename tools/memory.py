"""Print the memory that training of a config needs on each GPU, from its model on the meta device.

Weights, gradients and AdamW's two averages are 16 bytes a parameter, divided by the GPUs where they
are sharded; sharded or not, the largest block is there as a whole (its weights and gradients).
Activations are the bytes that autograd keeps in the backbone for one image at the size that it is
trained with, in fp32. The heads, buffers of convolutions and NCCL, and fragmentation come on top.

Examples:
  python tools/memory.py configs/imagenet/focalnet_h_fl4_in22k.py configs/upernet/focal_l.py
"""

import sys
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from focal_mm.backbones.base import Stage
from focal_mm.cli.tables import input_size

GIB = 2**30


def kept_bytes(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Return the bytes that autograd keeps of a forward pass of one image, without the weights."""
    weights = {id(parameter) for parameter in backbone.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        if id(value) not in weights and id(getattr(value, '_base', None)) not in weights:
            base = value if value._base is None else value._base
            kept[id(base)] = base  # holds it, so that no other gets its id
        return value

    image = torch.empty(1, 3, *size, device='meta')
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        backbone.train()(image)
    return sum(value.numel() * value.element_size() for value in kept.values())


def describe(path: str) -> str:
    """Return a row of the table for a config."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope'))
    for node in (cfg.model, cfg.model.backbone):
        node.pop('init_cfg', None)
    size = input_size(cfg)
    if cfg.default_scope == 'mmseg':
        size = tuple(cfg.crop_size)
    found: list[Any] = [path.removeprefix('configs/').removesuffix('.py')]
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    count = sum(parameter.numel() for parameter in model.parameters())
    found.append(f'{count / 1e6:.0f}')
    block = max(
        sum(parameter.numel() for parameter in block.parameters())
        for stage in model.modules()
        if isinstance(stage, Stage)
        for block in stage.blocks
    )
    found.append(f'{16 * count / GIB:.1f}')
    found += [f'{(16 * count / gpus + 8 * block) / GIB:.1f}' for gpus in (8, 32, 256)]
    found.append(f'{size[0]}x{size[1]}')
    for recompute in (False, True):
        with torch.device('meta'):
            backbone = MODELS.build(dict(cfg.model.backbone, with_cp=recompute))
        found.append(f'{kept_bytes(backbone, size) / GIB:.2f}')
    return f'| {" | ".join(found)} |'


def main() -> None:
    """Print the table."""
    if not sys.argv[1:]:
        sys.exit(f'usage: {sys.argv[0]} CONFIG [CONFIG ...]')
    print(
        '| config | M parameters | 1 GPU or DDP | 8 | 32 | 256 GPUs sharded | image | activations '
        '| with_cp |\n| --- ' + '| --: ' * 8 + '|'
    )
    for path in sys.argv[1:]:
        print(describe(path), flush=True)


if __name__ == '__main__':
    main()
