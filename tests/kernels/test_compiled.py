"""Kernels as operations of the graphs that torch.compile makes for a CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch.partitioners import min_cut_rematerialization_partition

from focal_mm import kernels
from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer
from focal_mm.backbones.base import Mlp
from focal_mm.backbones.focal_modulation import FocalModulation
from focal_mm.kernels.linear import PatchConv2d
from focal_mm.kernels.window_plans import FocalWindows, Windows

NETS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    'focalnet': (
        lambda: FocalNet(dict(embed_dims=16, depths=(1, 1)), focal_windows=9),
        {'gated_context'},
    ),
    'focal': (
        lambda: FocalTransformer(
            dict(embed_dims=16, depths=(2,)),
            num_heads=2,
            use_shift=True,
            focal_levels=2,
            focal_windows=3,
            expand_sizes=3,
        ),
        {'window_attention'},
    ),
    'mixformer': (
        lambda: MixFormer(dict(embed_dims=16, depths=(2,)), num_heads=2, use_shift=True),
        {'window_attention', 'pad_by_token', 'convolution'},
    ),
}
every_net = pytest.mark.parametrize('name', NETS)
SHALLOW = (2, 1, 1, 1)  # every further block would call the same as these


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return NETS[name][0](), torch.randn(2, 3, 61, 44)


def calls(run: Callable, *args: Tensor) -> list[str]:
    """What a function's graph calls."""
    found: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: object) -> Callable:
        nodes = (node for node in graph.graph.nodes if node.op.startswith('call'))
        found.extend(str(node.target) for node in nodes)
        return graph

    torch._dynamo.reset()
    torch.compile(run, backend=collect, fullgraph=True)(*args)
    return found


def operations(run: Callable, *args: Tensor) -> set[str]:
    """Names of the kernels in a function's graph, without those of places."""
    names = (name.split('.') for name in calls(run, *args))
    return {parts[1] for parts in names if parts[0] == 'focal_mm'} - {'relative_index', 'roll'}


@every_net
def test_graph_has_the_kernels(name):
    net, x = build(name)
    assert operations(net, x) == {'linear', 'mlp', *NETS[name][1]}


def test_padding_adds_no_calls_of_layers():
    """A second call of those before the attention made compiling a sixth longer."""
    net, x = build('mixformer')
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | PatchConv2d)]
    in_mlps = 2 * sum(isinstance(m, Mlp) for m in net.modules())
    found = [name for name in calls(net, x) if name.startswith('focal_mm.linear')]
    assert len(found) == len(layers) - in_mlps > 0


@pytest.mark.parametrize('trains', [False, True])
@pytest.mark.parametrize(
    'net',
    [
        lambda: FocalNet('tiny_lrf', depths=SHALLOW),
        lambda: FocalNet(dict(embed_dims=16, depths=(1, 1)), use_conv_embed=True),
        lambda: FocalTransformer('tiny', depths=SHALLOW),
        lambda: MixFormer('b0', depths=SHALLOW),
        lambda: MixFormer('b0', depths=SHALLOW, mlp_dwconv=True),
        lambda: MixFormer(
            'b0',
            depths=SHALLOW,
            parallel=False,
            channel_interaction=False,
            spatial_interaction=False,
        ),
    ],
)
def test_graphs_have_no_convolution_that_changes_the_layout_of_maps(net, trains):
    net = net().train(trains)
    with torch.set_grad_enabled(trains):
        found = calls(net, torch.randn(2, 3, 64, 64))
    assert not [name for name in found if 'conv' in name and 'focal_mm' not in name]
    assert any('focal_mm' in name for name in found)


@pytest.mark.parametrize('name', ['focal', 'mixformer'])
def test_gradients_are_added_up_at_places_that_are_not_computed_beside(name):
    net, x = build(name)
    for module in net.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = True
    places = []

    def collect(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        for node in graph.graph.nodes:
            if 'index_put' in str(node.target):
                places.extend(str(place.target) for place in node.args[1] if place is not None)
            assert 'index_add' not in str(node.target)
        return boxed_nop(graph, inputs)

    backend = aot_autograd(
        fw_compiler=boxed_nop,
        bw_compiler=collect,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )
    sum(m.square().mean() for m in torch.compile(net, backend=backend)(x)).backward()
    assert places and all('relative_index' in place for place in places)


@every_net
def test_kernels_are_chosen_when_the_graph_is_made(name):
    net, x = build(name)
    with kernels.use('reference'):
        assert not operations(net, x)


# Of graphs that are exported without torch.compile, test_export.py makes ONNX.
@every_net
def test_exported_graph_has_operations_of_pytorch_alone(name):
    net, x = build(name)
    program = torch.export.export(net.eval(), (x,), strict=True)
    assert not [n for n in program.graph.nodes if str(n.target).startswith('focal_mm')]


@pytest.mark.parametrize('dtype', [torch.float, torch.bfloat16])
@every_net
def test_compiled_step_has_the_values_of_eager(name, dtype):
    results = []
    for compiled in (False, True):
        net, x = build(name)
        run = net
        if compiled:
            run = torch.compile(net, backend='aot_eager', fullgraph=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype != torch.float):
            maps = run(x)
            net.eval()
            with torch.no_grad():
                found = [*maps, *run(x)]
        torch.stack([m.float().square().mean() for m in maps]).sum().backward()
        results.append([*found, *(p.grad for p in net.parameters())])
    tolerance = 1e-5 if dtype == torch.float else 3e-2
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@every_net
def test_hooked_layer_is_no_part_of_an_operation(name):
    net, x = build(name)
    for module in net.modules():
        if isinstance(module, nn.GELU):
            module.register_forward_hook(lambda module, args, out: 2 * out)
    assert operations(net, x) <= {'linear', 'window_attention', 'pad_by_token', 'convolution'}


@pytest.mark.parametrize('by', ['subclass', 'instance', 'class'])
def test_replaced_step_is_no_part_of_an_operation(by, monkeypatch):
    net, x = build('focalnet')

    def doubled(self: FocalModulation, levels: list[Tensor], gates: Tensor) -> Tensor:
        return 2 * sum(level * gates[:, i : i + 1] for i, level in enumerate(levels))

    for module in [m for m in net.modules() if isinstance(m, FocalModulation)]:
        if by == 'subclass':
            module.__class__ = type('Own', (FocalModulation,), {'aggregate': doubled})
        elif by == 'instance':
            module.aggregate = doubled.__get__(module)
    if by == 'class':
        monkeypatch.setattr(FocalModulation, 'aggregate', doubled)
    assert operations(net, x) == {'linear', 'mlp'}


def test_transform_in_a_graph_has_the_plain_twins():
    net, x = build('focalnet')
    net.eval()

    def each(x: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vmap(lambda image: net(image[None]))(x)

    assert not operations(each, x)
    with torch.no_grad():
        found, expected = torch.compile(each, backend='aot_eager')(x), net(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[:, 0], b, rtol=0, atol=2e-4)


@every_net
def test_compiled_net_takes_an_empty_batch(name):
    net, x = build(name)
    found = torch.compile(net.eval(), backend='aot_eager', fullgraph=True)(x[:0])
    assert [m.shape for m in found] == [m.shape for m in net(x[:0])]


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('store', [False, True])
@pytest.mark.parametrize(
    'case', ['linear', 'mlp', 'plain_mlp', 'gated_context', 'roll', 'padding', 'windows', 'focal']
)
def test_operation_keeps_what_it_promises_to_compilers(case, store):
    ops = torch.ops.focal_mm
    if case == 'linear':
        operation, args = ops.linear, [*tensors((600, 8), (5, 8), (5,))]
    elif case == 'mlp':
        shapes = (600, 8), (16, 8), (16,), (8, 16), (8,), (8,), (8,)
        operation, args = ops.mlp, [*tensors(*shapes), 1e-5, store]
    elif case == 'plain_mlp':
        x, weight1, weight2 = tensors((600, 8), (16, 8), (8, 16))
        operation, args = ops.mlp, [x, weight1, None, weight2, None, None, None, 1e-5, store]
    elif case == 'gated_context':
        context, gates, *kernels_ = tensors((2, 9, 7, 4), (2, 9, 7, 3), (4, 1, 3, 3), (4, 1, 5, 5))
        operation, args = ops.gated_context, [context, gates, kernels_, store]
    elif case == 'roll':
        operation, args = ops.roll, [*tensors((2, 9, 7, 4)), [2, -3]]
    elif case == 'padding':
        operation, args = ops.pad_by_token, [*tensors((2, 9, 7, 4), (1, 1, 1, 4)), 4]
    else:
        # With surroundings and a pooled map.
        focal = [1, 3, 1, 0] if case == 'focal' else []
        windows = (FocalWindows if focal else Windows)(9, 7, 4, (2, 2), *focal)
        tokens, keys = 12 * 8 + 6 * len(focal), windows.plan(torch.device('cpu')).keys.shape[1]
        qkv, bias = tensors((2, tokens, 24), (2, 16, keys))
        operation, args = ops.window_attention, [qkv, bias, [9, 7, 4, 2, 2, *focal], store]

    def changed(value: object, change: Callable[[Tensor], Tensor]) -> object:
        if isinstance(value, list):
            return [changed(part, change) for part in value]
        return change(value) if isinstance(value, Tensor) else value

    if not store:
        args = changed(args, Tensor.detach)
    torch.library.opcheck(operation, tuple(args))
    # The same with the last axis as the first in memory.
    args = changed(args, lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1).detach())
    if store:
        args = changed(args, Tensor.requires_grad_)
    torch.library.opcheck(operation, tuple(args))
