"""Networks of all families, tiny and with random weights, and a picture for them."""

import pytest
import torch
from mmengine.registry import MODELS

FOCAL = dict(type='FocalTransformer', embed_dims=16, num_heads=2, depths=(1, 1, 2, 1))
NETS = {
    'focalnet': dict(type='FocalNet', embed_dims=8, depths=(1, 1, 2, 1), focal_windows=5),
    'no_global': dict(type='FocalNet', embed_dims=8, depths=1, modulation='no_global'),
    'top_only': dict(type='FocalNet', embed_dims=8, depths=1, modulation='top_only'),
    'large': dict(type='FocalNet', arch='large_fl4', embed_dims=8, depths=1),
    'focal': FOCAL,
    'shifted': FOCAL | dict(use_shift=True, window_size=4, expand_sizes=2, focal_levels=3),
    'fast': FOCAL | dict(arch='fast_tiny', focal_topk=20),
    'mixformer': dict(type='MixFormer', arch='b0', depths=(1, 1, 2, 1), use_shift=True),
    'mixing': dict(type='MixingMobileNetV2', widen_factor=0.5),
}


@pytest.fixture(scope='session')
def nets():
    """Builds a network by its name, once, with its biases filled."""
    built = {}

    def build(name):
        if name not in built:
            torch.manual_seed(0)
            net = MODELS.build(dict(NETS[name]))
            for key, value in net.named_parameters():
                if 'bias_table' in key:
                    torch.nn.init.normal_(value)
            built[name] = net.train()
        return built[name]

    return build


@pytest.fixture(scope='session')
def image():
    """A tensor whose map is no multiple of a window at any stage."""
    return torch.randn(1, 3, 90, 130, generator=torch.Generator().manual_seed(0))
