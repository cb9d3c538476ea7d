"""What the arrays of focal_mm.look say, beside what the networks compute."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from focal_mm import look
from focal_mm.backbones.focal_modulation import FocalModulation
from focal_mm.backbones.focal_transformer import FocalTransformerBlock
from focal_mm.kernels.window_plans import FocalWindows
from focal_mm.look.maps import key_places
from focal_mm.look.samples import find_backbone, mixers_of

pytestmark = pytest.mark.stock

FOCALNETS = ('focalnet', 'no_global', 'top_only', 'large')
ATTENDING = ('focal', 'shifted', 'fast', 'mixformer', 'mixing')
SIZES = [(23, 33), (12, 17), (6, 9), (3, 5)]


@pytest.mark.parametrize('name', FOCALNETS)
def test_gates_times_contexts_make_the_modulator(nets, image, name):
    net = nets(name)
    found = (look.gates(net, image), look.contexts(net, image), look.modulators(net, image))
    for stage, mixers in enumerate(mixers_of(net)):
        for block, mixer in enumerate(mixers):
            gates, contexts, modulator = (one[stage][block] for one in found)
            assert gates.shape[:2] == modulator.shape[:2] == SIZES[stage]
            assert len(contexts) == gates.shape[2]
            total = sum(gates[..., i : i + 1] * level for i, level in enumerate(contexts))
            total = total / (mixer.focal_level + 1) if mixer.normalize_modulator else total
            expected = mixer.h(torch.from_numpy(total)[None].permute(0, 3, 1, 2))
            np.testing.assert_allclose(
                modulator, expected[0].permute(1, 2, 0).detach(), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize('name', ATTENDING)
def test_attention_lies_in_the_map_and_its_window_has_the_query(nets, image, name):
    net = nets(name)
    all_windows = look.windows(net, image)
    for x, y in ((0, 0), (52, 63), (129, 89)):
        found = look.attention(net, image, ((x + 0.5) / 130, (y + 0.5) / 90))
        for blocks, windows in zip(found, all_windows):
            for one, boxes in zip(blocks, windows):
                np.testing.assert_allclose(one.weights.sum(-1), 1, rtol=1e-5)
                assert one.boxes.shape == (one.weights.shape[1], 4)
                assert (one.boxes[:, :2] >= 0).all()
                assert (one.boxes[:, :2] < one.extent).all()
                left, top, right, bottom = one.query
                assert left <= x < right
                assert top <= y < bottom
                inside = [((p - boxes[:, i]) % one.extent[i]) for i, p in enumerate((x, y))]
                side = boxes[0, 2] - boxes[0, 0]
                assert ((inside[0] < side) & (inside[1] < side)).sum() == 1
                if name != 'fast':
                    window = one.boxes[one.levels == 0]
                    assert list(one.query) in window.tolist()
                    assert len(window) == (side // (right - left)) ** 2


@pytest.mark.parametrize('shift', [None, (2, 2)])
@pytest.mark.parametrize('side', [4, 5])
def test_pooled_keys_lie_where_their_tokens_are(side, shift):
    windows = FocalWindows(11, 14, side, shift, expand_size=1, focal_window=3, levels=2)
    high, wide = windows.padded
    attn = nn.Module()
    attn.window_size, attn.pooled_levels = side, 2
    block = FocalTransformerBlock(16, attn, 'mean')
    rows, cols = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing='ij')
    place = torch.stack([rows, cols], -1).float()[None]
    tokens = torch.cat([m.flatten(1, 2) for m in (place, *block.pool(place, shift))], 1)[0]
    plan, keys = windows.plan(torch.device('cpu')), key_places(windows)
    middle = np.stack([keys.rows, keys.cols], -1) + (keys.sides[:, None] - 1) / 2
    seen = plan.mask[:, 0, 0] == 0 if plan.mask.shape[2] == 1 else (plan.mask == 0).any(2)[:, 0]
    wraps = (keys.rows + keys.sides > high) | (keys.cols + keys.sides > wide)
    compared = seen.numpy() & ~wraps
    assert compared.mean() > 0.5
    np.testing.assert_allclose(middle[compared], tokens[plan.keys].numpy()[compared], atol=1e-4)
    assert set(keys.levels) == {0, 1, 2, 3}


def test_interactions_of_mixformer_are_what_scales_its_branches(nets, image):
    for name in ('mixformer', 'mixing'):
        net = nets(name)
        channels, positions = look.channel_weights(net, image), look.spatial_weights(net, image)
        mixer = mixers_of(net)[-1][-1]
        seen = {}
        hooks = [
            getattr(mixer, key).register_forward_hook(
                lambda _m, _a, out, key=key, seen=seen: seen.update({key: out.sigmoid()})
            )
            for key in ('channel_interaction', 'spatial_interaction')
        ]
        with torch.no_grad():
            net.eval()(image)
            net.train()
        for hook in hooks:
            hook.remove()
        np.testing.assert_allclose(
            channels[-1][-1], seen['channel_interaction'].flatten(), rtol=1e-5
        )
        np.testing.assert_allclose(positions[-1][-1], seen['spatial_interaction'][0, 0], rtol=1e-5)


@pytest.mark.parametrize('name', ['focalnet', 'focal', 'mixformer', 'mixing'])
def test_looking_changes_nothing_in_the_network(nets, image, name):
    net = nets(name)
    net.layers[0].eval() if hasattr(net, 'layers') else net.stage.eval()
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in net.modules())
    found = look.survey(net, image)
    assert [module.training for module in net.modules()] == modes
    assert all(value.equal(state[key]) for key, value in net.state_dict().items())
    assert sum(len(module._forward_hooks) for module in net.modules()) == hooks
    for mixers in mixers_of(net):
        assert not any(mixer.keep_maps for mixer in mixers)
        assert not any({'gates', 'tokens', 'contexts'} & set(vars(mixer)) for mixer in mixers)
    net.train()
    assert [norm.shape for norm in found.norms] == SIZES


def test_norms_are_those_of_the_raw_maps(nets, image):
    net = nets('focalnet')
    with torch.no_grad():
        net.out_norm = False
        maps = net.eval()(image)
        net.train().out_norm = True
    for norm, expected in zip(look.norms(net, image), maps):
        np.testing.assert_allclose(norm, expected.norm(dim=1)[0], rtol=1e-4)


def test_receptive_field_is_the_gradient_of_the_contexts(nets):
    mixer = mixers_of(nets('focalnet'))[0][0]
    fields = look.receptive_fields(nets('focalnet'))[0][0]
    assert [len(field) for field in fields] == [5, 11, 19]
    x = torch.randn(1, mixer.dim, 25, 25, requires_grad=True)
    context = x
    for layer, field in zip(mixer.focal_layers, fields):
        context = layer[0](context)
        reach = len(field) // 2
        seen = torch.autograd.grad(context[..., 12, 12].sum(), x, retain_graph=True)[0][0]
        strength = seen.abs().mean(0)[12 - reach : 13 + reach, 12 - reach : 13 + reach]
        np.testing.assert_allclose(field, strength / strength.max(), rtol=1e-3, atol=1e-5)


def test_rim_is_what_padding_added(nets):
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3))
    for width in range(4):
        assert look.rim(np.pad(kernel, ((0, 0), (width, width), (width, width)))) == width
    assert look.rim(np.zeros((4, 5, 5))) == 2
    checkpoint = FocalModulation(8, 2, 3).state_dict()
    larger = FocalModulation(8, 2, 7)
    larger.load_state_dict(checkpoint)
    assert [look.rim(level[0].weight[:, 0].detach().numpy()) for level in larger.focal_layers] == [
        2,
        2,
    ]


def test_biases_are_those_that_attention_adds(nets):
    net = nets('focal')
    mixer = mixers_of(net)[0][0]
    found = look.biases(net)[0][0]
    bias = mixer.position_bias().detach().numpy()  # (heads, queries, keys)
    for query in (0, 20, 48):
        row, col = divmod(query, 7)
        for key in (0, 31, 48):
            down, right = key // 7 - row, key % 7 - col
            # The table counts from the key to the query.
            np.testing.assert_allclose(
                found['window'][:, 6 - down, 6 - right], bias[:, query, key], rtol=1e-6
            )
    np.testing.assert_allclose(found['surroundings'], bias[:, :, 49 : 49 + 132], rtol=1e-6)
    assert found['pooled 1'].shape == (2, 13, 13)
    assert look.biases(nets('fast'))[0][0]['window'].shape == (2, 29, 29)


@pytest.mark.parametrize(
    'name, function, words',
    [
        ('focal', look.gates, 'FocalAttention has no gates'),
        ('focalnet', look.attention, 'FocalModulation has no token windows'),
        ('focalnet', look.biases, 'no position biases'),
        ('focal', look.spatial_weights, 'no spatial weights'),
    ],
)
def test_asking_for_what_a_network_has_not_says_so(nets, image, name, function, words):
    with pytest.raises(ValueError, match=words):
        function(nets(name), *([] if function is look.biases else [image]))


def test_other_networks_and_pictures_are_refused(nets, image, tmp_path):
    with pytest.raises(ValueError, match='has no FocalNet, FocalTransformer'):
        look.gates(nn.Conv2d(3, 8, 3), image)
    with pytest.raises(ValueError, match=r'shape \(2, 3, 8, 8\)'):
        look.gates(nets('focalnet'), torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match='from 0 to 1'):
        look.attention(nets('focal'), image, (3, 40))
    (tmp_path / 'a.jpg').write_text('no picture')
    with pytest.raises(ValueError, match=r'a\.jpg: not a picture'):
        look.gates(nets('focalnet'), tmp_path / 'a.jpg')


@pytest.mark.parametrize('size', [(1, 1), (3, 70), (200, 9)], ids=str)
@pytest.mark.parametrize('name', ['focalnet', 'shifted', 'mixformer'])
def test_pictures_of_any_size_can_be_looked_at(nets, size, name):
    found = look.survey(nets(name), np.full((*size, 3), 100, np.uint8))
    assert found.sample.picture.shape == (*size, 3)
    assert found.norms[0].shape == (-(-size[0] // 4), -(-size[1] // 4))


def test_file_and_pixels_and_grey_give_the_same(nets, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    net = nets('focalnet')
    one = look.prepare(net, tmp_path / 'grey.png')
    for other in (grey, cv2.imread(str(tmp_path / 'grey.png'))):
        assert look.prepare(net, other).inputs.equal(one.inputs)
    assert (one.picture == grey[..., None]).all()
    color = np.zeros((4, 4, 3), np.uint8)
    color[..., 2] = 200  # red, as mmcv reads it
    sample = look.prepare(net, color)
    assert sample.picture[0, 0].tolist() == [200, 0, 0]
    assert sample.inputs[0, 0, 0, 0] > 0 > sample.inputs[0, 2, 0, 0]


def test_backbone_is_found_within_a_model(nets):
    model = nn.Sequential(nn.Identity(), nn.ModuleDict(dict(body=nets('mixing'))))
    assert find_backbone(model) is nets('mixing')


def test_levels_of_variants_have_the_numbers_of_the_paper(nets, image):
    levels = {name: look.survey(nets(name), image).blocks[0][0].levels for name in FOCALNETS}
    assert levels == dict(
        focalnet=[1, 2, 3, 4], no_global=[1, 2, 3], top_only=[3], large=[1, 2, 3, 4, 5]
    )


def test_kernels_are_those_of_the_network(nets):
    mixer = mixers_of(nets('focalnet'))[2][1]
    for kernel, layer in zip(look.kernels(nets('focalnet'))[2][1], mixer.focal_layers):
        padded = F.pad(torch.from_numpy(kernel)[:, None], (0, 0, 0, 0))
        assert padded.equal(layer[0].weight)
    assert look.kernels(nets('mixformer'))[0][0][0].shape == (24, 3, 3)
    assert look.kernels(nets('focal'))[0][0] == []
