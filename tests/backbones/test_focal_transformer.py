from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from focal_mm.backbones.focal_transformer import (
    FocalAttention,
    FocalTransformer,
    FocalTransformerBlock,
    MultiLevelAttention,
    NearestAttention,
    SubWindowPool,
)
from focal_mm.kernels.window_plans import surroundings
from focal_mm.weights import CheckpointError
from focal_mm.weights.resize import fit_neighbour_bias, fit_position_bias

pytestmark = pytest.mark.stock

SMALL = dict(
    arch=dict(embed_dims=8, depths=(1, 2)),
    num_heads=(1, 2),
    window_size=4,
    focal_levels=(3, 2),
    focal_windows=(5, 3),
    expand_sizes=(1, 3),
)


FAST = dict(focal_topk=30, focal_levels=2)


def small(**kwargs) -> FocalTransformer:
    torch.manual_seed(0)
    return FocalTransformer(**{**SMALL, **kwargs}).eval()


def maps(net: FocalTransformer, *size: int, batch: int = 1) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    with torch.no_grad():
        return net(torch.randn(batch, 3, *size))


@pytest.mark.parametrize(
    'name',
    [
        'focal_tiny_224',
        'focal_tiny_256x320',
        'focal_tiny_regions_15_13_9_7',
        'focal_fast_tiny_224',
        'focal_tiny_window_14',
    ],
)
def test_maps_equal_the_official_ones(golden, name):
    case = golden(name)
    net = FocalTransformer(**case.arguments).eval()
    net.load_state_dict(case.checkpoint)
    with torch.no_grad():
        assert case.worst(net(case.image)) < 2e-4


# Tables 2 and 9; the authors' README for the overlapped embedding and the
# faster version: classifiers of 1000 classes.
@pytest.mark.parametrize(
    'arguments, millions',
    [
        (dict(arch='tiny'), 28.9),
        (dict(arch='small'), 51.1),
        (dict(arch='base'), 89.8),
        (dict(arch='tiny_conv'), 30.8),
        (dict(arch='small_conv'), 53.1),
        (dict(arch='base_conv'), 93.3),
        (dict(arch='fast_tiny'), 30.2),
        (dict(arch='fast_small'), 51.5),
        (dict(arch='fast_base'), 91.2),
        (dict(depths=2), 21.7),
        (dict(depths=(2, 2, 4, 2)), 25.4),
    ],
)
def test_parameters_are_the_papers(arguments, millions):
    with torch.device('meta'):
        net = FocalTransformer(**arguments, out_norm=False)
    width = net.layers[-1].blocks[0].attn.proj.in_features
    count = sum(p.numel() for p in net.parameters()) + 2 * width + width * 1000 + 1000
    assert count / 1e6 == pytest.approx(millions, rel=0.012)


# ---- focal attention, against its definition token by token ------------------------------------


def by_definition(attn: FocalAttention, levels: list[Tensor], shift: int) -> Tensor:
    """Of a map that is whole windows, and rolled by ``shift``."""
    side, expand, heads = attn.window_size, attn.expand_size, attn.num_heads
    projected = [attn.qkv(x[0]).unflatten(-1, (3, heads, -1)) for x in levels]
    (height, width), window = levels[0].shape[1:3], list(product(range(side), repeat=2))
    out = torch.empty_like(levels[0])

    def strangers(*places: int) -> bool:
        a, b, c, d = places
        return (a >= height - shift, b >= width - shift) != (
            c >= height - shift,
            d >= width - shift,
        )

    for y, x in product(range(height), range(width)):
        row, col, i, j = y // side, x // side, y % side, x % side
        found = []
        for a, b in window:
            place = row * side + a, col * side + b
            index = (i - a + side - 1) * (2 * side - 1) + j - b + side - 1
            if not shift or not strangers(y, x, *place):
                found.append((projected[0][place], attn.relative_position_bias_table[index]))
        corners = [(s, t) for s in (expand, -expand) for t in (expand, -expand) if expand]
        beyond = [
            (a + down, b + right)
            for down, right in corners
            for a, b in window
            if (a + down, b + right) not in window
        ]
        for number, (a, b) in enumerate(beyond):
            place = (row * side + a) % height, (col * side + b) % width
            bias = attn.relative_position_bias_table_to_neighbors[0, :, i * side + j, number]
            found.append((projected[0][place], bias))
        for level, table in enumerate(attn.relative_position_bias_table_to_windows()):
            tokens, across = projected[level + 1], 2**level
            region = attn.focal_window + across - 1
            for a, b in product(range(region), repeat=2):
                place = (
                    row * across + a - attn.focal_window // 2,
                    col * across + b - attn.focal_window // 2,
                )
                index = (i - a + region - 1) * (side + region - 1) + j - b + region - 1
                if 0 <= place[0] < tokens.shape[0] and 0 <= place[1] < tokens.shape[1]:
                    found.append((tokens[place], table[:, index]))
        query = projected[0][y, x, 0] * query_scale(attn)
        scores = torch.stack([(query * token[1]).sum(-1) + bias for token, bias in found])
        values = torch.stack([token[2] for token, _ in found])
        out[0, y, x] = (scores.softmax(0)[..., None] * values).sum(0).flatten()
    return attn.proj(out)


def query_scale(attn: MultiLevelAttention) -> float:
    return (attn.proj.in_features // attn.num_heads) ** -0.5


@pytest.mark.parametrize(
    'expand_size, pooled_levels, shift', [(0, 0, 0), (2, 0, 0), (0, 1, 0), (1, 2, 0), (2, 1, 1)]
)
def test_attention_follows_its_definition(expand_size, pooled_levels, shift):
    attn = FocalAttention(
        4, 2, window_size=3, expand_size=expand_size, focal_window=3, pooled_levels=pooled_levels
    ).double()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter)
    levels = [torch.randn(1, 6, 9, 4, dtype=torch.double)]
    levels += [
        torch.randn(1, 2 * 2**k, 3 * 2**k, 4, dtype=torch.double) for k in range(pooled_levels)
    ]
    expected = by_definition(attn, levels, shift).roll((shift, shift), (1, 2))
    levels[0] = levels[0].roll((shift, shift), (1, 2))
    out = attn(levels, 5, 7, (shift, shift) if shift else None)
    torch.testing.assert_close(out, expected[:, :5, :7])


@pytest.mark.parametrize('pooled_levels, shift', [(0, 0), (1, 0), (1, 1)])
def test_nearest_attention_follows_its_definition(pooled_levels, shift):
    # 9 of 13 tokens no farther than 2 from a middle: those no farther than 1.5; 6 windows are all.
    attn = NearestAttention(4, 2, window_size=3, topk=9, pooled_levels=pooled_levels).double()
    levels = [torch.randn(1, 6, 9, 4, dtype=torch.double)]
    levels += [torch.randn(1, 2, 3, 4, dtype=torch.double)] * pooled_levels
    query, key, value = attn.qkv(levels[0][0]).unflatten(-1, (3, 2, -1)).unbind(2)
    pooled = attn.qkv(levels[-1][0]).unflatten(-1, (3, 2, -1))
    out = torch.empty_like(levels[0])
    for y, x in product(range(6), range(9)):
        row, col = y // 3, x // 3
        found = [
            (key[a, b], value[a, b], attn.coord2rpb_all[0](torch.tensor([y - a, x - b]).double()))
            for a, b in product(range(3 * row, 3 * row + 3), range(3 * col, 3 * col + 3))
        ]
        for a, b in product(range(2), range(3)) if pooled_levels else ():
            offset = torch.tensor([y - 3 * a - 1, x - 3 * b - 1]).double()
            found.append((*pooled[a, b, 1:], attn.coord2rpb_all[1](offset)))
        scores = torch.stack(
            [(query[y, x] * query_scale(attn) * k).sum(-1) + bias for k, _, bias in found]
        )
        values = torch.stack([v for _, v, _ in found])
        out[0, y, x] = (scores.softmax(0)[..., None] * values).sum(0).flatten()
    expected = attn.proj(out).roll((shift, shift), (1, 2))
    levels[0] = levels[0].roll((shift, shift), (1, 2))
    out = attn(levels, 5, 7, (shift, shift) if shift else None)
    torch.testing.assert_close(out, expected[:, :5, :7])


@pytest.mark.parametrize('precision', [torch.double, torch.bfloat16])
@pytest.mark.parametrize(
    'version', [dict(expand_size=2, focal_window=3, pooled_levels=2), dict(topk=9, pooled_levels=1)]
)
def test_chunks_give_what_all_windows_at_once_do(version, precision):
    attn = (NearestAttention if 'topk' in version else FocalAttention)(
        32, 16, window_size=4, **version
    ).double()
    levels = [
        torch.randn(2, 20 * 2**k // 4, 28 * 2**k // 4, 32, dtype=torch.double)
        for k in (2, 0, 1)[: 1 + version['pooled_levels']]
    ]
    results = []
    for attn.attn_drop in (0.0, 1e-30):  # with dropout, though it drops nothing, all are at once
        attn.zero_grad()
        inputs = [x.to(precision).requires_grad_() for x in levels]
        out = attn.to(precision)(inputs, 18, 26, (1, 1))
        out.square().sum().backward()
        results.append([out, *(x.grad for x in inputs), *(p.grad for p in attn.parameters())])
    for ours, theirs in zip(*results):
        assert (ours - theirs).norm() < (
            1e-9 if precision == torch.double else 0.03
        ) * theirs.norm()


def test_map_of_one_window_is_not_shifted():
    shifted = FocalTransformerBlock(8, FocalAttention(8, 2, window_size=4), shift_size=2)
    plain = FocalTransformerBlock(8, FocalAttention(8, 2, window_size=4))
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 4, 9, 8)
    torch.testing.assert_close(shifted(x), plain(x))
    larger = torch.randn(1, 5, 9, 8)
    assert not torch.allclose(shifted(larger), plain(larger))


# ---- pooling -----------------------------------------------------------------------------------


@pytest.mark.parametrize('method', ['fc', 'conv'])
def test_learned_pooling_starts_as_the_mean(method):
    x = torch.randn(2, 6, 9, 4)
    pooled = SubWindowPool(4, 3, 'mean')(x)
    assert pooled.shape == (2, 2, 3, 4)
    torch.testing.assert_close(pooled[1, 1, 2], x[1, 3:, 6:].mean((0, 1)))
    torch.testing.assert_close(SubWindowPool(4, 3, method)(x), pooled)


def test_pooling_by_one_weight_a_position_is_the_one_by_channels_with_equal_weights():
    one, channels, x = (
        SubWindowPool(4, 3, 'fc'),
        SubWindowPool(4, 3, 'conv'),
        torch.randn(1, 6, 6, 4),
    )
    torch.nn.init.normal_(one.weight)
    with torch.no_grad():
        channels.weight.copy_(one.weight.view(1, 1, 3, 3).expand(4, -1, -1, -1))
    torch.testing.assert_close(one(x), channels(x))


def test_max_pooling_takes_the_largest():
    x = torch.randn(1, 4, 4, 3)
    torch.testing.assert_close(
        SubWindowPool(3, 2, 'max')(x)[0, 1, 0], x[0, 2:, :2].flatten(0, 1).max(0).values
    )


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(arch='tny'), ["unknown arch 'tny'", "'tiny'"]),
        (dict(num_heads=(1, 2, 4)), ['num_heads=(1, 2, 4)', '3 values for 4 stages']),
        (dict(num_heads=5), ['5 num_heads', '96 channels', 'divisor']),
        (dict(expand_sizes=7), ['expand_sizes=7', '0 to 6']),
        (dict(focal_windows=4), ['focal_windows=4', 'odd']),
        (dict(focal_levels=0), ['focal_levels=0', '1 to 4']),
        (dict(focal_levels=5), ['focal_levels=5', 'window_size=7', '1 to 4']),
        (dict(focal_topk=0), ['focal_topk=0', '1 or more']),
        (dict(focal_levels=3, focal_topk=9), ['focal_levels=3', 'focal_topk', '1 or 2']),
        (dict(focal_pool='avg'), ["unknown focal_pool 'avg'", 'mean']),
    ],
)
def test_wrong_argument_gives_one_line_with_the_way_out(arguments, words):
    with pytest.raises(ValueError) as error:
        FocalTransformer(**arguments)
    assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


@pytest.mark.parametrize('arguments', [dict(focal_pool='none'), dict(focal_levels=1)])
def test_without_pooling_only_the_fine_level_is_left(arguments):
    names = small(**arguments).state_dict()
    assert not any('pool_layers' in name or 'to_windows' in name for name in names)


# ---- checkpoints that fit ----------------------------------------------------------------------


def reported(net: FocalTransformer, state_dict: dict[str, Tensor], monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr('focal_mm.weights.loading.print_log', lambda line, **_: lines.append(line))
    net.load_state_dict(state_dict)
    return lines


def test_missing_biases_of_the_surroundings_start_at_zero_and_it_is_said(monkeypatch):
    net = small()
    lines = reported(net, small(expand_sizes=(1, 0)).state_dict(), monkeypatch)
    assert lines == ['2 neighbour bias tables not in the checkpoint, zero to begin with']
    assert not net.layers[1].blocks[1].attn.relative_position_bias_table_to_neighbors.any()


def test_other_regions_and_windows_are_interpolated_and_it_is_said(monkeypatch):
    lines = reported(
        small(window_size=8, focal_windows=(7, 3), expand_sizes=(2, 3)),
        small().state_dict(),
        monkeypatch,
    )
    assert sorted(lines) == [
        '1 neighbour bias table interpolated 1x1x16x28 -> 1x1x64x112',
        '1 region bias table interpolated 1x64 -> 1x196',
        '1 region bias table interpolated 1x81 -> 1x225',
        '1 sub-window pooling resampled 2x2 -> 4x4',
        '1 window bias table interpolated 49x1 -> 225x1',
        '2 neighbour bias tables interpolated 1x2x16x60 -> 1x2x64x156',
        '2 region bias tables interpolated 2x36 -> 2x100',
        '2 window bias tables interpolated 49x2 -> 225x2',
        '3 sub-window poolings resampled 4x4 -> 8x8',
    ]


def test_region_biases_are_laid_over_the_larger_region():
    table = torch.randn(3, 13 * 13)
    expected = F.interpolate(table.view(1, 3, 13, 13), (21, 21), mode='bilinear')
    torch.testing.assert_close(fit_position_bias(table, 21 * 21), expected.view(3, -1))


def test_neighbour_biases_follow_the_query_over_its_window():
    grid = torch.randn(2, 7, 7)
    table = grid.view(1, 2, 49, 1).expand(-1, -1, -1, len(surroundings(7, 3)))
    expected = F.interpolate(grid[None], (14, 14), mode='bilinear').view(1, 2, 196, 1)
    torch.testing.assert_close(
        fit_neighbour_bias(table, 14, 5), expected.expand(-1, -1, -1, len(surroundings(14, 5)))
    )


def test_neighbour_biases_keep_to_their_side_and_corner():
    """A bias that tells which of the four moves, and which strip, a key belongs to."""

    def told(side: int, depth: int) -> Tensor:
        return torch.tensor(
            [
                100.0 * (down > 0)
                + 10 * (right > 0)
                + 2 * (not 0 <= i + down < side)
                + (not 0 <= j + right < side)
                for down, right, i, j in surroundings(side, depth)
            ]
        )

    table = told(7, 3).expand(1, 1, 49, -1)
    torch.testing.assert_close(fit_neighbour_bias(table, 10, 2), told(10, 2).expand(1, 1, 100, -1))


def test_neighbour_biases_along_a_side_are_interpolated_along_it():
    down_along = torch.tensor([float(i) for _, _, i, _ in surroundings(7, 3)])
    fitted = fit_neighbour_bias(down_along.expand(1, 1, 49, -1), 7, 1)[0, 0, 0]
    beside = [
        value
        for value, (down, right, i, j) in zip(fitted, surroundings(7, 1))
        if down > 0 and right > 0 and i + down < 7
    ]
    expected = F.interpolate(torch.arange(4.0).view(1, 1, 4), 6, mode='linear').flatten()
    torch.testing.assert_close(torch.stack(beside), expected)


def test_constants_of_the_official_code_are_left_out():
    net, state_dict = small(), small().state_dict()
    block = 'layers.0.blocks.0.'
    for name in (
        'attn_mask',
        'attn.relative_position_index',
        'attn.relative_position_index_1',
        'attn.valid_ind_rolled',
        'attn.valid_ind_unfold_1',
        'attn.window_coords',
        'attn.topk_cloest_indice_0',
        'attn.topk_cloest_coords_1',
    ):
        state_dict[block + name] = torch.zeros(3)
    net.load_state_dict(state_dict)


@pytest.mark.parametrize(
    'name, shape, words',
    [
        ('relative_position_bias_table', (50, 1), '50 entries is not square'),
        ('relative_position_bias_table_to_windows.0', (1, 65), '65 entries is not square'),
        ('relative_position_bias_table_to_neighbors', (1, 1, 16, 30), '16 queries and 30 keys'),
    ],
)
def test_impossible_table_is_refused(name, shape, words):
    state_dict = small().state_dict()
    state_dict[f'layers.0.blocks.0.attn.{name}'] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=words):
        small().load_state_dict(state_dict)
