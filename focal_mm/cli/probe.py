"""The program of ``focal-mm doctor`` that imports the libraries one after the other.

It runs as text (``python -c``), because as a module it would import focal_mm, and so torch, first;
and as a file, it would find the modules beside it under the names of others. Each line that starts
with ``@@`` is a JSON object: the name of a step when it begins, then what it found or its error.
"""

import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def attempt(name: str, step: Callable[[], dict[str, Any]]) -> None:
    """Run a step and print what it returns, or its error."""
    print('@@' + json.dumps(dict(name=name, begun=True)), flush=True)
    try:
        found = step()
    except BaseException as error:
        found = dict(error=f'{type(error).__name__}: {error}')
    print('@@' + json.dumps(dict(found, name=name)), flush=True)


def load(*names: str) -> dict[str, Any]:
    """Import modules."""
    for name in names:
        importlib.import_module(name)
    return {}


def find_devices() -> dict[str, Any]:
    """Return the GPUs, and the CUDA version that torch was built for."""
    import torch

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [[card.name, card.total_memory, f'{card.major}.{card.minor}'] for card in cards]
    return dict(cuda=torch.version.cuda, gpus=gpus)


def set_up() -> dict[str, Any]:
    """Import focal_mm."""
    import focal_mm

    focal_mm.set_up()
    return {}


def find_ops() -> dict[str, Any]:
    """Return the names of mmcv's ops, and which of them focal_mm supplies."""
    import mmcv.ops

    from focal_mm.compat import StandIn, mmcv_ops

    folder = Path(mmcv.ops.__file__).parent
    text = ' '.join(file.read_text(encoding='utf-8') for file in folder.glob('*.py'))
    lists = re.findall(r"load_ext\(\s*'_ext'\s*,\s*\[(.*?)\]", text, re.DOTALL)
    names = sorted({name for one in lists for name in re.findall(r"'(\w+)'", one)})
    packages = ('panopticapi', 'xtcocotools')
    return dict(
        stand_in=isinstance(sys.modules.get('mmcv._ext'), StandIn),
        names=names,
        ours=[name for name in names if name in mmcv_ops.__all__],
        others=[name for name in packages if isinstance(sys.modules.get(name), StandIn)],
    )


def run_ops() -> dict[str, Any]:
    """Run the two ops that every two-stage detector needs."""
    import torch
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9], [20, 20, 30, 30]])
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
    assert kept.tolist() == [0, 2], f'nms keeps {kept.tolist()} instead of [0, 2]'
    roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 7, 7]]), 2)
    return {}


def run_backbone() -> dict[str, Any]:
    """Run a FocalNet."""
    import torch
    from mmengine.registry import MODELS

    net = MODELS.build(dict(type='FocalNet', arch='tiny_srf')).eval()
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 64, 64))
    assert maps[0].shape == (1, 96, 16, 16), f'the first map is {tuple(maps[0].shape)}'
    return {}


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    for module in ('torch', 'torchvision', 'mmengine', 'mmcv'):
        attempt(module, partial(load, module))
    attempt('devices', find_devices)
    attempt('focal_mm', set_up)
    attempt('ops', find_ops)
    attempt('nms and roi_align', run_ops)
    attempt('FocalNet-T', run_backbone)
    for module in ('mmdet', 'mmseg', 'mmpretrain'):
        if find_spec(module):
            attempt(module, partial(load, module, f'{module}.models'))
