import pytest
import torch
import torch.nn.functional as F
from torch import nn

from focal_mm.backbones.base import Mlp
from focal_mm.backbones.mixformer import ConvMerging, MixFormer, MixingBlock
from focal_mm.backbones.mixing_attention import (
    ChannelInteraction,
    MixingAttention,
    SuccessiveAttention,
)
from focal_mm.weights import CheckpointError
from focal_mm.weights.paddle import to_torch

pytestmark = pytest.mark.stock

SMALL = dict(arch=dict(embed_dims=16, depths=(1, 2)), num_heads=(2, 4), window_size=3)
SUCCESSIVE = dict(parallel=False, channel_interaction=False, spatial_interaction=False)
VARIANTS = [{}, dict(use_shift=True, mlp_dwconv=True), SUCCESSIVE]


def trained(module: nn.Module) -> nn.Module:
    """As after training: every parameter and statistic away from its start, in eval mode."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * (0.5 if name.endswith('running_var') else 0.2))
    return module.eval()


def small(**kwargs) -> MixFormer:
    torch.manual_seed(0)
    return trained(MixFormer(**{**SMALL, **kwargs}))


def maps(net: MixFormer, *size: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    with torch.no_grad():
        return net(torch.randn(2, 3, *size))


@pytest.mark.parametrize(
    'name', ['mixformer_b0_two_of_odd_size', 'mixformer_b1_224x288', 'mixformer_b4_256x256']
)
def test_maps_equal_the_official_ones(golden, name):
    case = golden(name)
    net = MixFormer(**case.arguments).eval()
    net.load_state_dict(to_torch(case.checkpoint))
    with torch.no_grad():
        assert case.worst(net(case.image)) < 2e-4


# Paper, Table 3; a classifier is a norm, a layer of 1280 channels and 1000 classes.
@pytest.mark.parametrize('arch, millions', [('b1', 8), ('b2', 10), ('b3', 17), ('b4', 35)])
def test_parameters_are_the_papers(arch, millions):
    with torch.device('meta'):
        net = MixFormer(arch, out_norm=False)
    width = net.layers[-1].blocks[0].attn.proj.out_features
    classifier = 2 * width + 1280 * (width + 1) + 1000 * 1281
    assert round((sum(p.numel() for p in net.parameters()) + classifier) / 1e6) == millions


@pytest.mark.parametrize('arch', MixFormer.archs)
def test_stochastic_depth_ends_at_the_rate_of_the_arch(arch):
    with torch.device('meta'):
        net = MixFormer(arch)
    rates = [block.drop_path.drop_prob for stage in net.layers for block in stage.blocks]
    assert rates[0] == 0 and rates[-1] == MixFormer.archs[arch]['drop_path_rate']
    assert rates == sorted(rates)


@pytest.mark.parametrize('patch_size', [2, 8])
def test_patch_size_is_the_stride_of_the_stem(patch_size):
    outs = maps(small(patch_size=patch_size), 30, 17)
    assert outs[0].shape[2:] == (-(-30 // patch_size), -(-17 // patch_size))


def test_channels_of_each_stage_can_be_given():
    net = small(embed_dims=(16, 40), num_heads=(2, 5))
    assert [out.shape[1] for out in maps(net, 24, 24)] == [16, 40]


# ---- BatchNorm folded for inference ------------------------------------------------------------


@pytest.mark.parametrize(
    'variant', [*VARIANTS, dict(channel_interaction=False), dict(spatial_interaction=False)]
)
def test_folded_net_gives_the_same_maps(variant):
    net = small(**variant)
    expected = maps(net, 33, 47)
    assert net.fold_norms() is net
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    for ours, theirs in zip(maps(net.fold_norms(), 33, 47), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_net_in_training_is_not_folded():
    with pytest.raises(RuntimeError, match=r'training mode; call eval\(\)'):
        small().train().fold_norms()


# ---- BatchNorm in training ---------------------------------------------------------------------


def test_norm_eval_keeps_the_statistics():
    net = small(norm_eval=True)
    before = [buffer.clone() for buffer in net.buffers()]
    assert net.train() is net and net.layers[0].blocks[0].norm1.training
    maps(net, 32, 32)
    torch.testing.assert_close(list(net.buffers()), before)


def test_statistics_follow_the_data_without_norm_eval():
    net = small().train()
    before = net.layers[1].blocks[0].attn.conv_norm.running_mean.clone()
    maps(net, 32, 32)
    assert (net.layers[1].blocks[0].attn.conv_norm.running_mean != before).all()


def test_pooled_map_of_a_lone_image_is_normalized_by_the_running_statistics():
    branch, x = trained(ChannelInteraction(nn.BatchNorm2d(4))), torch.randn(1, 4, 1, 1)
    expected, mean = branch(x), branch[0].running_mean.clone()
    torch.testing.assert_close(branch.train()(x), expected)
    torch.testing.assert_close(branch[0].running_mean, mean)
    assert branch[0].training


# ---- the mixing block, against the paper -------------------------------------------------------


def windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, H, W, C) -> (N, windows, size**2, C)."""
    rows = [
        x[:, i : i + size, j : j + size].flatten(1, 2)
        for i in range(0, x.shape[1], size)
        for j in range(0, x.shape[2], size)
    ]
    return torch.stack(rows, 1)


def whole(x: torch.Tensor, height: int, width: int, size: int) -> torch.Tensor:
    """(N, windows, size**2, C) -> (N, H, W, C)."""
    out = x.new_empty(len(x), height, width, x.shape[-1])
    places = [(i, j) for i in range(0, height, size) for j in range(0, width, size)]
    for k, (i, j) in enumerate(places):
        out[:, i : i + size, j : j + size] = x[:, k].unflatten(1, (size, size))
    return out


def by_the_paper(m: MixingAttention, x: torch.Tensor) -> torch.Tensor:
    """Figures 1 and 2, head by head, the values scaled before the attention."""
    size, (height, width) = m.window_size, x.shape[1:3]
    conv = m.proj_cnn_norm(m.proj_cnn(x)).permute(0, 3, 1, 2)
    conv = m.dwconv3x3(conv)
    q, k, v = m.qkv(m.proj_attn_norm(m.proj_attn(x))).chunk(3, -1)
    if m.channel_interaction is not None:
        scale = torch.sigmoid(m.channel_interaction(F.adaptive_avg_pool2d(conv, 1)))
        v = v * scale.permute(0, 2, 3, 1)
    heads = []
    for head in range(m.num_heads):
        mine = slice(head * q.shape[-1] // m.num_heads, (head + 1) * q.shape[-1] // m.num_heads)
        qs, ks, vs = (windows(t[..., mine], size) for t in (q, k, v))
        scores = qs @ ks.transpose(-1, -2) / qs.shape[-1] ** 0.5
        for a in range(size**2):
            for b in range(size**2):
                dy, dx = a // size - b // size, a % size - b % size
                row = (dy + size - 1) * (2 * size - 1) + dx + size - 1
                scores[..., a, b] += m.relative_position_bias_table[row, head]
        heads.append(whole(scores.softmax(-1) @ vs, height, width, size))
    attn = torch.cat(heads, -1)
    conv = m.projection(conv)
    if m.spatial_interaction is not None:
        conv = conv * torch.sigmoid(m.spatial_interaction(attn.permute(0, 3, 1, 2)))
    conv = m.conv_norm(conv).permute(0, 2, 3, 1)
    return m.proj(torch.cat((m.attn_norm(attn), conv), -1))


@pytest.mark.parametrize('channel', [False, True])
@pytest.mark.parametrize('spatial', [False, True])
@pytest.mark.parametrize('kernel', [1, 3, 5])
def test_mixing_attention_follows_the_paper(channel, spatial, kernel):
    m = trained(
        MixingAttention(
            16,
            2,
            window_size=3,
            dwconv_kernel_size=kernel,
            channel_interaction=channel,
            spatial_interaction=spatial,
        )
    )
    x = torch.randn(2, 6, 9, 16)
    with torch.no_grad():
        torch.testing.assert_close(m(x), by_the_paper(m, x))


def test_successive_design_convolves_what_was_attended_to():
    m = trained(SuccessiveAttention(16, 2, window_size=3))
    x = torch.randn(2, 6, 9, 16)
    with torch.no_grad():
        attended = m.attn_norm(m.attend(m.qkv(x))).permute(0, 3, 1, 2)
        expected = m.proj(m.dwconv3x3(attended).permute(0, 2, 3, 1))
        torch.testing.assert_close(m(x), expected)


def seen_from(m: MixingAttention, height: int, width: int, y: int, x: int) -> set:
    """The tokens that the attention of one token depends on."""
    tokens = torch.randn(1, height, width, 16, requires_grad=True)
    m.attend(m.qkv(tokens))[0, y, x].sum().backward()
    return {tuple(place) for place in tokens.grad[0].abs().sum(-1).nonzero().tolist()}


@pytest.mark.parametrize(
    'token, rows, cols',
    [((0, 0), (0,), (0,)), ((1, 0), (1, 2), (0,)), ((2, 3), (1, 2), (3, 4)), ((5, 5), (5,), (5,))],
)
def test_shifted_windows_end_at_the_border_of_the_map(token, rows, cols):
    m = trained(SuccessiveAttention(16, 2, window_size=2, shift_size=1))
    assert seen_from(m, 6, 6, *token) == {(y, x) for y in rows for x in cols}


def test_side_of_one_window_is_not_shifted():
    m = trained(SuccessiveAttention(16, 2, window_size=2, shift_size=1))
    assert seen_from(m, 2, 4, 0, 1) == {(y, x) for y in (0, 1) for x in (1, 2)}


def test_every_second_block_is_shifted_by_half_a_window():
    net = small(use_shift=True, depths=(3, 2))
    shifts = [[block.attn.shift_size for block in stage.blocks] for stage in net.layers]
    assert shifts == [[0, 1, 0], [0, 1]]


def test_map_is_padded_to_whole_windows_after_the_norm():
    block = trained(MixingBlock(16, MixingAttention(16, 2, window_size=4), Mlp(16, 64)))
    x = torch.randn(2, 5, 7, 16)
    with torch.no_grad():
        padded = torch.zeros(2, 8, 8, 16)
        padded[:, :5, :7] = block.norm1(x)
        out = x + block.attn(padded)[:, :5, :7]
        torch.testing.assert_close(block(x), out + block.mlp(block.norm2(out)))


def test_odd_map_is_padded_before_it_is_merged():
    merging, x = trained(ConvMerging(4, 6)), torch.randn(2, 4, 5, 3)
    padded = torch.zeros(2, 4, 6, 4)
    padded[:, :, :5, :3] = x
    with torch.no_grad():
        out = merging(x)
        torch.testing.assert_close(out, merging(padded))
    assert out.shape == (2, 3, 2, 6)


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(arch='b7'), ["unknown arch 'b7'", "'b6'"]),
        (dict(num_heads=(3, 4)), ['num_heads=3', 'divisor']),
        (dict(num_heads=(2, 4, 8)), ['num_heads=(2, 4, 8)', '2 stages']),
        (dict(embed_dims=8), ['8 channels', '16 or more']),
        (dict(dwconv_kernel_size=4), ['dwconv_kernel_size=4', 'odd']),
        (dict(window_size=0), ['window_size=0']),
        (dict(patch_size=3), ['patch_size=3', 'even']),
        (dict(parallel=False), ['parallel=False', 'channel_interaction=False']),
    ],
)
def test_wrong_argument_gives_one_line_with_the_way_out(arguments, words):
    with pytest.raises(ValueError) as error:
        MixFormer(**{**SMALL, **arguments})
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


# ---- checkpoints that fit ----------------------------------------------------------------------


def test_larger_kernels_compute_what_the_checkpoint_did():
    net, larger = small(), small(dwconv_kernel_size=5)
    larger.load_state_dict(net.state_dict())
    torch.testing.assert_close(maps(larger, 40, 24), maps(net, 40, 24))


def test_position_bias_of_another_window_is_interpolated():
    seven, nine = (MixingAttention(16, 2, window_size=size) for size in (7, 9))
    offset = torch.arange(13.0) - 6
    ramp = torch.stack((offset[:, None] + 0 * offset, 0 * offset[:, None] + offset), -1)
    with torch.no_grad():
        seven.relative_position_bias_table.copy_(ramp.flatten(0, 1))
    nine.load_state_dict(seven.state_dict())
    fitted = nine.relative_position_bias_table.unflatten(0, (17, 17))
    # Linear in the distance it stays, symmetric about 0, flat beyond the outermost known one.
    steps = ((torch.arange(17.0) - 8) * 13 / 17).clamp(-6, 6)
    torch.testing.assert_close(fitted[:, 3, 0], steps)
    torch.testing.assert_close(fitted[3, :, 1], steps)


def test_what_official_files_have_besides_is_left_out():
    net = small()
    state_dict = net.state_dict()
    state_dict.update(
        {
            'norm.weight': torch.ones(32),
            'last_proj.weight': torch.ones(1280, 32),
            'head.bias': torch.ones(10),
            'layers.0.blocks.0.attn.relative_position_index': torch.ones(9, 9),
        }
    )
    missing, unexpected = small().load_state_dict(state_dict)
    assert not missing and not unexpected


def test_even_kernel_in_a_checkpoint_is_refused():
    state_dict = small().state_dict()
    state_dict['layers.0.blocks.0.attn.dwconv3x3.0.weight'] = torch.zeros(16, 1, 4, 4)
    with pytest.raises(CheckpointError, match='4x4 kernel'):
        small().load_state_dict(state_dict)
