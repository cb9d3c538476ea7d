"""mmengine's switches that change parts of a model, on parts of our backbones."""

import re
from copy import deepcopy

import pytest
import torch
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.registry import MODELS
from mmengine.runner import turn_on_activation_checkpointing
from torch import Tensor, nn

from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer

pytestmark = pytest.mark.stock

FOCAL = dict(num_heads=2, window_size=4, focal_levels=2, focal_windows=3, expand_sizes=1)
NETS = {
    'FocalNet': lambda: FocalNet(
        arch=dict(embed_dims=8, depths=(1, 1)), focal_levels=2, focal_windows=3, drop_path_rate=0.5
    ),
    'FocalTransformer': lambda: FocalTransformer(
        arch=dict(embed_dims=8, depths=(1, 1)), drop_path_rate=0.5, **FOCAL
    ),
    'MixFormer': lambda: MixFormer(
        arch=dict(embed_dims=16, depths=(1, 1)), num_heads=2, window_size=3, drop_path_rate=0.5
    ),
    'MixingResNet': lambda: MODELS.build(
        dict(type='MixingResNet', base_channels=8, mixing_dims=32, num_heads=2, num_blocks=1)
    ),
}
all_nets = pytest.mark.parametrize('name', NETS)


class Model(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return sum(map_.square().mean() for map_ in self.backbone(x))


@all_nets
@pytest.mark.parametrize('whole', [True, False], ids=['whole', 'parts'])
def test_recomputed_parts_have_the_same_gradients_and_statistics(name, whole):
    """The stem, whose input needs no gradient, attention, which takes a list, and BatchNorms."""
    plain = Model(NETS[name]()).train()
    recomputed = deepcopy(plain)
    parts = [
        part
        for part, _ in plain.named_modules()
        if re.search(r'\.(patch_embed|convnet|attn|modulation|dwconv3x3|mlp)$', part)
    ]
    turn_on_activation_checkpointing(recomputed, 'backbone' if whole else parts)
    image = torch.randn(2, 3, 32, 32)
    for model in (plain, recomputed):
        torch.manual_seed(0)
        model(image).backward()
    for (key, ours), theirs in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        assert theirs.grad is None or ours.grad is not None, key
        torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    torch.testing.assert_close(dict(recomputed.named_buffers()), dict(plain.named_buffers()))


@all_nets
@pytest.mark.parametrize('training', [True, False])
def test_norms_folded_on_the_fly_give_the_same(name, training):
    plain = Model(NETS[name]()).train()
    image = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    plain(image)  # statistics that are not those of the start
    folded = deepcopy(plain)
    turn_on_efficient_conv_bn_eval(folded, 'backbone')
    for model in (plain, folded):
        model.train(training)
        torch.manual_seed(0)
        model.loss = model(image)
        model.loss.backward()
    torch.testing.assert_close(folded.loss, plain.loss)
    for ours, theirs in zip(folded.parameters(), plain.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_norms_of_mixformer_are_folded_indeed():
    model = Model(NETS['MixFormer']()).eval()
    calls = []
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
        before = len(calls)
        turn_on_efficient_conv_bn_eval(model, 'backbone')
        calls.clear()
        model(torch.randn(1, 3, 32, 32))
    assert 0 < len(calls) < before


def test_other_models_go_their_own_way():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    turn_on_activation_checkpointing(model, '0')
    model(torch.randn(1, 3, 8, 8, requires_grad=True)).sum().backward()
    assert model[0][1].num_batches_tracked == 2  # as in mmengine
