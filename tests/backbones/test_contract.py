"""One contract for all families: the step that someone replaces is the step that runs, in eager,
compiled, exported and traced alike; and what every backbone of this package promises.

Kernels that stand for several modules must not be seen from outside. Most tests therefore compare
two roads to the same network and need no knowledge of how either is computed.
"""

import copy
import functools
import importlib
import inspect
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer, fuse_conv_bn
from mmcv.cnn.bricks import DropPath
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vjp, vmap
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import focal_mm
from focal_mm.backbones import (
    FocalNet,
    FocalTransformer,
    MixFormer,
    MixingMobileNetV2,
    MixingResNet,
)
from focal_mm.backbones.arguments import ELSEWHERE, RENAMED
from focal_mm.backbones.focalnet import FocalModulation
from focal_mm.weights import CheckpointError

pytestmark = pytest.mark.stock

Maps = tuple[Tensor, ...]
FOLDER = str(Path(focal_mm.__file__).parents[1])

FOCAL = dict(
    arch=dict(embed_dims=8, depths=(1, 2)),
    num_heads=(1, 2),
    window_size=4,
    focal_levels=(3, 2),
    focal_windows=(5, 3),
    expand_sizes=(1, 3),
    use_shift=True,
)
MIXING = dict(mixing_dims=16, num_blocks=1, num_heads=2, window_size=3)
# Small networks that together have every part of their families.
NETS: dict[str, tuple[type[nn.Module], dict]] = {
    'focalnet': (
        FocalNet,
        dict(arch=dict(embed_dims=8, depths=(1, 1)), focal_levels=2, focal_windows=3),
    ),
    'focalnet_large': (
        FocalNet,
        dict(
            arch=dict(embed_dims=8, depths=(1, 1)),
            focal_levels=2,
            focal_windows=(5, 3),
            use_conv_embed=True,
            layer_scale_init_value=0.5,
            use_postln=True,
            use_postln_in_modulation=True,
            normalize_modulator=True,
        ),
    ),
    'focalnet_convnet': (
        FocalNet,
        dict(
            arch=dict(embed_dims=8, depths=(1,)),
            focal_levels=2,
            focal_windows=3,
            modulation='convnet',
        ),
    ),
    'focalnet_attention': (
        FocalNet,
        dict(
            arch=dict(embed_dims=8, depths=(1,)),
            focal_levels=2,
            focal_windows=3,
            modulation='multi_scale_attention',
        ),
    ),
    'focalnet_sliding_window': (
        FocalNet,
        dict(
            arch=dict(embed_dims=8, depths=(1,)),
            focal_levels=1,
            focal_windows=5,
            modulation='sliding_window',
        ),
    ),
    'focal': (FocalTransformer, FOCAL),
    'focal_fast': (
        FocalTransformer,
        {
            **FOCAL,
            'focal_levels': 2,
            'focal_topk': 30,
            'use_conv_embed': True,
            'use_pre_norm': True,
        },
    ),
    'mixformer': (
        MixFormer,
        dict(
            arch=dict(embed_dims=16, depths=(1, 2)), num_heads=(2, 4), window_size=3, use_shift=True
        ),
    ),
    'mixformer_successive': (
        MixFormer,
        dict(
            arch=dict(embed_dims=16, depths=(1,)),
            num_heads=2,
            window_size=3,
            mlp_dwconv=True,
            parallel=False,
            channel_interaction=False,
            spatial_interaction=False,
        ),
    ),
    'mixing_resnet': (MixingResNet, dict(MIXING, depth=50, base_channels=4, stem_channels=4)),
    'mixing_mobilenet': (MixingMobileNetV2, dict(MIXING, widen_factor=0.1)),
}
STAGED = [
    name
    for name, (cls, _) in NETS.items()
    if cls.__name__ in ('FocalNet', 'FocalTransformer', 'MixFormer')
]
MIXED = [name for name in NETS if name.startswith('mix')]
LEADING = 'focalnet', 'focal', 'focal_fast', 'mixformer'  # one a kind of kernel

every_net = pytest.mark.parametrize('name', NETS)
staged_net = pytest.mark.parametrize('name', STAGED)
leading_net = pytest.mark.parametrize('name', LEADING)
# What PyTorch does with a network: OpenMMLab's packages build it, and have no part in that. Both
# stacks are tested with the same torch.
torch_alone = pytest.mark.onedl


def trained(net: nn.Module) -> nn.Module:
    """Move every parameter and statistic away from its start, so that each one shows in the maps;
    return the network in eval mode."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.add_(
                torch.rand_like(value)
                if name.endswith('running_var')
                else torch.randn_like(value) * 0.1
            )
    return net.eval()


def build(name: str, **kwargs) -> nn.Module:
    cls, arguments = NETS[name]
    torch.manual_seed(0)
    return trained(cls(**{**arguments, **kwargs}))


def fixed_statistics(name: str) -> dict:
    """Arguments with which training depends on no statistics of the batch."""
    return dict(norm_eval=True) if name in MIXED else {}


def images(count: int = 2, height: int = 37, width: int = 50, **kwargs) -> Tensor:
    """Images whose maps are whole windows in no stage."""
    return torch.randn(
        count, 3, height, width, generator=torch.Generator().manual_seed(1), **kwargs
    )


def assert_close(ours: object, theirs: object, atol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


def differs(ours: Maps, theirs: Maps) -> bool:
    return any((a - b).abs().max() > 1e-4 for a, b in zip(ours, theirs))


def total(maps: Maps) -> Tensor:
    return sum(m.square().mean() for m in maps)


def gradients(run: Callable[[Tensor], Maps], net: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of all parameters that learn. Not by autograd.grad, which mmdet's recomputation
    refuses."""
    net.zero_grad()
    total(run(x)).backward()
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for p in net.parameters()
        if p.requires_grad
    ]


def steps_of(net: nn.Module) -> dict[str, nn.Module]:
    """Submodules that have a forward of their own. Of mmdet's networks only the whole counts."""
    return {
        name: module
        for name, module in net.named_modules()
        if name
        and not isinstance(module, (nn.ModuleList, nn.ParameterList))
        and not name.startswith('convnet.')
    }


def linears(net: nn.Module) -> list[str]:
    return [name for name, module in steps_of(net).items() if type(module) is nn.Linear]


def convolutions(net: nn.Module) -> list[str]:
    return [name for name, module in steps_of(net).items() if type(module) is nn.Conv2d]


def replaced(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """A copy of a network with another submodule."""
    net = copy.deepcopy(net)
    parent, _, child = name.rpartition('.')
    setattr(net.get_submodule(parent), child, module)
    return net


def assert_called_in_place(net: nn.Module, name: str, module: nn.Module, x: Tensor) -> None:
    """A module in place of another computes what it does within a wrapper that only calls it."""
    net(x)  # so that whatever is cached is there
    ours = replaced(net, name, module)(x)
    assert_close(ours, replaced(net, name, nn.Sequential(module))(x))
    assert differs(ours, net(x)), name


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks spend their time waiting for a second thread: up to 100 times as long on a
    busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The lines that go to MMEngine's current logger."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_instance(f'contract{len(MMLogger._instance_dict)}')
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


# ---- hooks and patches on any submodule --------------------------------------------------------

HOOKS = ('forward_pre_hook', 'forward_hook', 'full_backward_pre_hook', 'full_backward_hook')


@torch_alone
@pytest.mark.filterwarnings('ignore:Full backward hook is firing')
@pytest.mark.parametrize('kind', HOOKS)
@every_net
def test_hook_on_any_submodule_is_called(name, kind):
    net, missed = build(name), []
    for step, module in steps_of(net).items():
        calls: list[nn.Module] = []
        handle = getattr(module, f'register_{kind}')(lambda m, *_, calls=calls: calls.append(m))
        if 'backward' in kind:
            total(net(images())).backward()
        else:
            with torch.no_grad():
                net(images())
        handle.remove()
        missed += [] if calls else [step]
    assert not missed


@torch_alone
@pytest.mark.filterwarnings('ignore:Full backward hook is firing')
@pytest.mark.parametrize('kind', HOOKS)
@staged_net
def test_global_hook_sees_every_submodule(name, kind):
    net, seen = build(name), set()
    handle = getattr(global_hooks, f'register_module_{kind}')(lambda m, *_: seen.add(m))
    try:
        total(net(images())).backward()
    finally:
        handle.remove()
    assert not [step for step, module in steps_of(net).items() if module not in seen]


@torch_alone
@every_net
def test_activation_and_gradient_can_be_taken_at_any_submodule(name):
    """As Grad-CAM does."""
    net, x = build(name), images(1)
    missed = []
    for step, module in steps_of(net).items():
        taken: list[Tensor] = []

        def keep(_: nn.Module, __: tuple, out: Tensor, taken: list[Tensor] = taken) -> None:
            for map_ in out if isinstance(out, tuple) else (out,):
                map_.retain_grad()
                taken.append(map_)

        handle = module.register_forward_hook(keep)
        total(net(x)).backward()
        handle.remove()
        missed += [] if any(m.grad is not None for m in taken) else [step]
    assert not missed


def alter(out: object) -> object:
    """Something else of the same shapes, which no norm takes back."""
    return tree_map(lambda t: t.cos() if isinstance(t, Tensor) else t, out)


@contextmanager
def by_hook(module: nn.Module) -> Iterator[None]:
    with module.register_forward_hook(lambda _, __, out: alter(out)):
        yield


@contextmanager
def by_instance(module: nn.Module) -> Iterator[None]:
    old = module.forward
    module.forward = functools.update_wrapper(
        functools.partial(lambda _, *args, **kwargs: alter(old(*args, **kwargs)), module), old
    )
    yield
    del module.forward


@contextmanager
def by_subclass(module: nn.Module) -> Iterator[None]:
    cls = type(module)
    module.__class__ = type(
        f'Own{cls.__name__}',
        (cls,),
        dict(forward=lambda self, *args, **kwargs: alter(cls.forward(self, *args, **kwargs))),
    )
    yield
    module.__class__ = cls


@torch_alone
@pytest.mark.parametrize('training', [False, True])
@every_net
def test_changed_output_of_any_submodule_is_used_whichever_way_it_is_changed(name, training):
    net, x = build(name, **fixed_statistics(name)).train(training), images()
    wrong = []
    with torch.set_grad_enabled(training):
        before = net(x)
        for step, module in steps_of(net).items():
            outs = []
            for change in (by_hook, by_instance, by_subclass):
                with change(module):
                    outs.append(net(x))
            same = all(
                torch.allclose(a, b, rtol=1e-4, atol=1e-4)
                for out in outs
                for a, b in zip(out, outs[0])
            )
            wrong += [] if same and differs(outs[0], before) else [step]
    assert not wrong


def offload(net: nn.Module) -> None:
    """Keep weights on the meta device between calls, as accelerate's ``cpu_offload`` does: each
    module that owns some gets them for the time of its forward."""
    for module in list(net.modules()):
        weights = dict(module.named_parameters(recurse=False))
        if not weights:
            continue

        old = getattr(module, 'forward', None)  # a ParameterList has none

        def forward(*args, module=module, weights=weights, old=old):
            module._parameters.update(weights)
            try:
                return old(*args)
            finally:
                empty(module, weights)

        def empty(module: nn.Module, weights: dict[str, nn.Parameter]) -> None:
            module._parameters.update(
                {
                    name: nn.Parameter(value.to('meta'), value.requires_grad)
                    for name, value in weights.items()
                }
            )

        empty(module, weights)
        module.forward = forward


@torch_alone
@every_net
def test_weights_may_be_there_only_while_their_module_is_called(name):
    net, x = build(name), images()
    with torch.no_grad():
        expected = net(x)
        offload(net)
        assert all(p.is_meta for p in net.parameters())
        assert_close(net(x), expected)


# ---- public steps that someone overrides -------------------------------------------------------

STEPS = [
    ('focalnet', 'modulation', 'gather'),
    ('focalnet', 'modulation', 'contextualize'),
    ('focalnet', 'modulation', 'aggregate'),
    ('focalnet', 'modulation', 'forward'),
    ('focalnet', 'mlp', 'forward'),
    ('focal', 'attn', 'position_bias'),
    ('focal', 'attn', 'forward'),
    ('focal', 'mlp', 'forward'),
    ('focal_fast', 'attn', 'position_bias'),
    ('focal_fast', 'attn', 'forward'),
    ('mixformer', 'attn', 'position_bias'),
    ('mixformer', 'attn', 'attend'),
    ('mixformer', 'attn', 'forward'),
    ('mixformer', 'mlp', 'forward'),
    ('mixformer_successive', 'attn', 'attend'),
]


def parts(net: nn.Module, part: str) -> list[nn.Module]:
    """The modules of that name in all blocks."""
    return [module for name, module in net.named_modules() if name.split('.')[-1] == part]


def override(net: nn.Module, part: str, step: str, by: str, monkeypatch=None) -> list[str]:
    """Alter the result of a step in all blocks, by subclasses, patched instances or a patched
    class. Returns a list that gets an entry a call."""
    calls: list[str] = []
    for module in parts(net, part)[: 1 if by == 'class' else None]:
        original = getattr(type(module), step)

        def altered(self, *args, original=original, **kwargs):
            calls.append(step)
            return alter(original(self, *args, **kwargs))

        if by == 'subclass':
            module.__class__ = type('Own', (type(module),), {step: altered})
        elif by == 'instance':
            setattr(module, step, altered.__get__(module))
        else:
            monkeypatch.setattr(type(module), step, altered)
    return calls


def run_compiled(net: nn.Module, x: Tensor, backend: str = 'eager') -> Maps:
    torch._dynamo.reset()
    return torch.compile(net, backend=backend, fullgraph=True)(x)


def run_exported(net: nn.Module, x: Tensor) -> Maps:
    return torch.export.export(net, (x,)).module()(x)


def run_traced(net: nn.Module, x: Tensor) -> Maps:
    return torch.jit.trace(copy.deepcopy(net), x, check_trace=False)(x)


def run_reference(net: nn.Module, x: Tensor) -> Maps:
    from focal_mm import kernels

    with kernels.use('reference'):
        return net(x)


ROADS: dict[str, Callable[[nn.Module, Tensor], Maps]] = dict(
    reference=run_reference,
    compiled=run_compiled,
    aot_eager=functools.partial(run_compiled, backend='aot_eager'),
    exported=run_exported,
    traced=run_traced,
)


@torch_alone
@pytest.mark.parametrize('name, part, step', STEPS)
def test_overridden_step_runs_whichever_way_it_is_overridden(name, part, step):
    net, x = build(name, **fixed_statistics(name)), images()
    by_the_book, wrong = copy.deepcopy(net), []
    override(by_the_book, part, step, 'subclass')
    with torch.no_grad():
        before, expected = net(x), run_reference(by_the_book, x)
    assert differs(expected, before)
    for by in ('subclass', 'instance', 'class'):
        for training in (False, True):
            own = copy.deepcopy(net).train(training)
            with torch.set_grad_enabled(training), pytest.MonkeyPatch.context() as patch:
                calls = override(own, part, step, by, patch)
                outs = own(x)
            same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(outs, expected))
            if not same or len(calls) < len(parts(own, part)):
                wrong.append((by, 'training' if training else 'inference'))
    assert not wrong


# Graphs of networks as they are, in eval mode, are in test_export.py.
@torch_alone
@pytest.mark.parametrize(
    'road, training, overridden',
    [
        ('reference', False, False),
        ('reference', True, False),
        ('reference', False, True),
        ('compiled', True, False),
        ('aot_eager', False, True),
        ('exported', True, False),
        ('exported', False, True),
        ('traced', True, False),
        ('traced', False, True),
    ],
)
@leading_net
def test_every_road_gives_the_same_maps(name, road, training, overridden):
    net, x = build(name).train(training), images()
    if overridden:
        for case, part, step in STEPS:
            if case == name and hasattr(parts(net, part)[0], step):
                override(net, part, step, 'subclass')
    with torch.set_grad_enabled(training and road not in ('exported', 'traced')):
        expected = copy.deepcopy(net)(x)
        assert_close(ROADS[road](copy.deepcopy(net), x), expected)


# ---- switches ----------------------------------------------------------------------------------

PROFILE = """
import sys, torch
from collections import Counter
from torch.profiler import ProfilerActivity, profile
sys.path.insert(0, {folder!r})
def operations(net, x):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as records:
        net(x)
    return Counter(event.name for event in records.events() if event.name.startswith('aten::'))
from focal_mm.backbones import FocalNet
from focal_mm import kernels
torch.manual_seed(0)
net, x = FocalNet(dict(embed_dims=8, depths=(1, 1))).eval(), torch.randn(1, 3, 64, 64)
operations(net, x)
own = operations(net, x)
with kernels.use('reference'):
    reference = operations(net, x)
with kernels.use('fast'):
    fast = operations(net, x)
assert reference != fast
print('own is reference' if own == reference else 'own is fast' if own == fast else 'neither')
"""


def in_another_process(
    code: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


@torch_alone
@pytest.mark.parametrize('mode', ['fast', 'reference'])
def test_environment_chooses_the_kernels(mode):
    done = in_another_process(PROFILE.format(folder=FOLDER), FOCAL_MM_KERNELS=mode)
    assert done.stdout.strip() == f'own is {mode}', done.stderr


def test_unknown_mode_is_one_line_with_the_way_out():
    from focal_mm import kernels

    with pytest.raises(ValueError, match="'quick'.*reference") as error, kernels.use('quick'):
        pass
    assert '\n' not in str(error.value)
    done = in_another_process(PROFILE.format(folder=FOLDER), FOCAL_MM_KERNELS='quick')
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ValueError') and 'FOCAL_MM_KERNELS' in last and 'reference' in last


# ---- adapters ----------------------------------------------------------------------------------


class Lora(nn.Module):
    """A linear layer with a trained difference of low rank. It has no weight of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        layer = copy.deepcopy(self.base)
        layer.weight += self.up.weight @ self.down.weight
        return layer


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@torch_alone
@staged_net
def test_low_rank_adapter_does_what_its_merged_layer_does(name):
    net, x = build(name), images()
    for layer in linears(net):
        adapter = Lora(net.get_submodule(layer))
        merged = replaced(net, layer, adapter.merged())(x)
        assert_close(replaced(net, layer, adapter)(x), merged)
        assert differs(merged, net(x)), layer


def halve_by_parametrization(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, 'weight', Halved())


@torch.no_grad()
def halve_by_weight_norm(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.div_(2)


@torch.no_grad()
def halve_by_weight_norm_of_old(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)  # computes the weight in a hook before forward
    layer.weight_g.div_(2)


@torch_alone
@pytest.mark.filterwarnings('ignore:`torch.nn.utils.weight_norm` is deprecated')
@pytest.mark.parametrize(
    'halve', [halve_by_parametrization, halve_by_weight_norm, halve_by_weight_norm_of_old]
)
@staged_net
def test_weight_computed_from_others_is_used_and_learned(name, halve):
    net, x = build(name), images()
    for layer in (*linears(net), *convolutions(net)):
        own, halved = copy.deepcopy(net), copy.deepcopy(net)
        halve(own.get_submodule(layer))
        halved.get_submodule(layer).weight.data.div_(2)
        assert_close(own(x), halved(x))
        changed = own.get_submodule(layer)
        total(own(x)).backward()
        assert any(p.grad is not None and p.grad.any() for p in changed.parameters()), layer


@torch_alone
@staged_net
def test_linear_layer_may_have_no_bias(name):
    net, x = build(name), images()
    for layer in linears(net):
        old = net.get_submodule(layer)
        if old.bias is None:
            continue
        new = nn.Linear(old.in_features, old.out_features, bias=False)
        new.weight = old.weight
        zero = copy.deepcopy(old)
        nn.init.zeros_(zero.bias)
        own, expected = replaced(net, layer, new), replaced(net, layer, zero)
        with torch.no_grad():
            assert_close(own(x), expected(x))
        ours, theirs = (
            {n: g for (n, _), g in zip(m.named_parameters(), gradients(m, m, x))}
            for m in (own, expected)
        )
        assert_close(ours, {n: theirs[n] for n in ours})


@torch_alone
@pytest.mark.parametrize(
    'options',
    [
        dict(dilation=2),
        dict(bias=True),
        dict(padding_mode='circular'),
        dict(padding_mode='reflect'),
        dict(padding='same'),
        dict(groups=1),
        dict(kernel_size=(3, 5)),
    ],
)
@staged_net
def test_convolution_within_a_block_may_be_another(name, options):
    net, x = build(name), images(1)
    for layer in convolutions(net):
        old = net.get_submodule(layer)
        if old.stride != (1, 1) or old.kernel_size[0] == 1 or 'blocks' not in layer:
            continue  # 1x1 convolutions and patch embeddings have other tests
        kernel = options.get('kernel_size', old.kernel_size)
        dilation = options.get('dilation', 1)
        new = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            **{
                **dict(
                    kernel_size=kernel,
                    groups=old.groups,
                    bias=old.bias is not None,
                    padding=tuple(dilation * (side // 2) for side in kernel),
                ),
                **options,
            },
        )
        assert_called_in_place(net, layer, new, x)
        # With dilation 2 a kernel is one twice as wide, with zeros between.
        if dilation == 2:
            wide = nn.Conv2d(
                old.in_channels,
                old.out_channels,
                2 * kernel[0] - 1,
                padding=kernel[0] - 1,
                groups=old.groups,
                bias=old.bias is not None,
            )
            nn.init.zeros_(wide.weight).data[..., ::2, ::2] = new.weight.data
            wide.bias = new.bias
            assert_close(replaced(net, layer, new)(x), replaced(net, layer, wide)(x))


@torch_alone
@pytest.mark.parametrize(
    'act',
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.GELU('tanh'),
        nn.Softplus(),
        nn.Tanh(),
        nn.PReLU(init=0.1),
        nn.Identity(),
    ],
    ids=repr,
)
@staged_net
def test_activation_of_any_layer_may_be_another(name, act):
    net, x = build(name), images(1)
    found = [step for step, module in steps_of(net).items() if isinstance(module, nn.GELU)]
    assert found
    before = net(x)
    for step in found:
        own, wrapped = replaced(net, step, act), replaced(net, step, nn.Sequential(act))
        maps = own(x)
        assert_close(maps, wrapped(x))
        if not isinstance(act, nn.GELU):  # the approximation is close
            assert differs(maps, before), step


@torch_alone
@pytest.mark.filterwarnings('ignore:.*torch.ao.quantization is deprecated')
@staged_net
def test_dynamic_quantisation_takes_every_linear_layer(name):
    net, x = build(name), images()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
    assert not linears(quantised)
    with torch.no_grad():
        for ours, exact in zip(quantised(x), net(x)):
            assert (ours - exact).norm() < 0.1 * exact.norm()


class Int8Weight(Tensor):
    """An 8-bit weight as torchao has it: it can be multiplied with, and nothing else."""

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> 'Int8Weight':
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, weight: Tensor) -> 'Int8Weight':
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def exact(self) -> Tensor:
        return self.values * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.exact(), *bias, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].values, args[0].scale)
        raise NotImplementedError(f'{func} of an 8-bit weight')


@torch_alone
@pytest.mark.parametrize('training', [False, True])
@staged_net
def test_weight_of_a_tensor_subclass_is_left_to_its_own_product(name, training):
    net, x = build(name), images()
    expected = copy.deepcopy(net)
    with torch.no_grad():
        for layer in linears(net):
            weight = Int8Weight.of(net.get_submodule(layer).weight.detach())
            net.get_submodule(layer).weight = nn.Parameter(weight, requires_grad=False)
            expected.get_submodule(layer).weight.copy_(weight.exact())
    with torch.set_grad_enabled(training):
        assert_close(net(x), expected(x))


@torch_alone
@leading_net
def test_torchao_quantises_weights(name):
    quantization = pytest.importorskip('torchao.quantization')
    net, x = build(name), images()
    with torch.no_grad():
        expected = net(x)
        quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
        for ours, exact in zip(net(x), expected):
            assert (ours - exact).norm() < 0.1 * exact.norm()


# ---- transforms, modes and devices -------------------------------------------------------------


@torch_alone
@staged_net
def test_transforms_give_the_gradients_of_autograd(name):
    net, x = build(name).double(), images(1, dtype=torch.double)
    weights = dict(net.named_parameters())
    ours = grad(lambda w: total(functional_call(net, w, (x,))))(
        {key: value.detach() for key, value in weights.items()}
    )
    assert_close(list(ours.values()), gradients(net, net, x), atol=1e-9)


@torch_alone
@staged_net
def test_forward_mode_agrees_with_reverse_mode(name):
    net, x = build(name).double(), images(1, dtype=torch.double)
    tangent = torch.randn_like(x)
    outs, ours = jvp(net, (x,), (tangent,))
    maps, pull = vjp(net, x)
    cotangent = tuple(torch.randn_like(m) for m in maps)
    assert_close(outs, maps)
    assert_close(
        sum((a * b).sum() for a, b in zip(ours, cotangent)),
        (pull(cotangent)[0] * tangent).sum(),
        atol=1e-9,
    )


@torch_alone
@staged_net
def test_forward_mode_runs_without_transforms(name):
    net, x = build(name).double(), images(1, dtype=torch.double)
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        ours = [torch.autograd.forward_ad.unpack_dual(m).tangent for m in net(dual)]
    with torch.no_grad():
        expected = [
            (a - b) / 2e-6 for a, b in zip(net(x + 1e-6 * tangent), net(x - 1e-6 * tangent))
        ]
    assert_close(ours, expected, atol=1e-5)


@torch_alone
@staged_net
def test_images_and_weights_can_be_mapped_over(name):
    net, other, x = build(name), trained(build(name)), images(3)
    with torch.no_grad():
        assert_close(vmap(lambda image: net(image[None]))(x), tuple(m[:, None] for m in net(x)))
        weights, buffers = stack_module_state([net, other])
        assert_close(
            vmap(lambda w, b: functional_call(net, (w, b), (x,)))(weights, buffers),
            tuple(map(torch.stack, zip(net(x), other(x)))),
        )


@torch_alone
@staged_net
def test_gradient_of_each_image_can_be_mapped_over(name):
    net, x = build(name), images(2)
    weights = {key: value.detach() for key, value in net.named_parameters()}
    ours = vmap(
        grad(lambda w, image: total(functional_call(net, w, (image[None],)))), in_dims=(None, 0)
    )(weights, x)
    expected = zip(*(gradients(net, net, image[None]) for image in x))
    assert_close(list(ours.values()), [torch.stack(g) for g in expected])


@torch_alone
@staged_net
def test_gradients_agree_with_finite_differences(name):
    net = build(name).double()
    names, values = zip(*net.named_parameters())
    x = images(1, 21, 26, dtype=torch.double).requires_grad_()

    def run(image: Tensor, *weights: Tensor) -> Tensor:
        return total(functional_call(net, dict(zip(names, weights)), (image,)))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@torch_alone
@staged_net
def test_second_gradients_agree_with_finite_differences(name):
    """Of the gradient penalty, along one direction through the image and all weights."""
    net = build(name).double()
    names, start = zip(*net.named_parameters())
    start = tuple(p.detach() for p in start)
    x, direction = images(1, dtype=torch.double), [torch.randn_like(p) for p in start]
    across = torch.randn_like(x)

    def penalty(step: float, weights: tuple[Tensor, ...] = start) -> Tensor:
        weights = [w + step * d for w, d in zip(weights, direction)]
        image = (x + step * across).requires_grad_()
        loss = total(functional_call(net, dict(zip(names, weights)), (image,)))
        return torch.autograd.grad(loss, image, create_graph=True)[0].square().sum()

    step = torch.zeros((), dtype=torch.double, requires_grad=True)
    (ours,) = torch.autograd.grad(penalty(step), step)
    assert_close(ours, (penalty(1e-6) - penalty(-1e-6)).detach() / 2e-6, atol=1e-9)


@torch_alone
@staged_net
def test_both_ways_to_the_hessian_agree(name):
    net, x = build(name).double(), images(1, dtype=torch.double)
    tangent = torch.randn_like(x)

    def loss(image: Tensor) -> Tensor:
        return total(net(image))

    _, forward_over_reverse = jvp(grad(loss), (x,), (tangent,))
    x.requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (reverse_twice,) = torch.autograd.grad((first * tangent).sum(), x)
    assert_close(forward_over_reverse, reverse_twice, atol=1e-9)


@torch_alone
@pytest.mark.parametrize('training', [False, True])
@every_net
def test_fake_tensors_have_the_shapes_and_leave_nothing_behind(name, training):
    x = images(2, 41, 54)
    with FakeTensorMode(), torch.set_grad_enabled(training):
        outs = NETS[name][0](**NETS[name][1]).eval()(torch.randn(2, 3, 41, 54))
    net = build(name)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        again = net(mode.from_tensor(x))
    maps = net(x)
    assert [m.shape for m in outs] == [m.shape for m in again] == [m.shape for m in maps]
    assert all(m.isfinite().all() for m in maps)


def tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


@every_net
def test_net_built_on_meta_takes_the_tensors_of_a_state_dict(name):
    net, x = build(name), images()
    with torch.device('meta'):
        own = NETS[name][0](**NETS[name][1]).eval()
    assert all(t.is_meta for t in tensors(own))
    own.load_state_dict(net.state_dict(), assign=True)
    assert not any(t.is_meta for t in tensors(own))
    assert_close(own(x), net(x))


@every_net
def test_net_built_on_meta_can_be_materialised_and_loaded(name):
    net, x = build(name), images()
    torch.set_default_device('meta')
    try:
        own = NETS[name][0](**NETS[name][1]).eval()
    finally:
        torch.set_default_device(None)
    own.to_empty(device='cpu').load_state_dict(net.state_dict())
    assert_close(own(x), net(x))


@pytest.mark.parametrize('training', [False, True])
@every_net
def test_default_device_is_not_that_of_the_net(name, training):
    net, x = build(name, **fixed_statistics(name)).train(training), images(2, 45, 58)
    with torch.set_grad_enabled(training):
        with torch.device('meta'):
            outs = net(x)
        assert_close(outs, net(x))


@every_net
def test_copies_compute_the_same(name):
    net, x = build(name), images()
    expected = net(x)
    assert_close(copy.deepcopy(net)(x), expected)
    assert_close(pickle.loads(pickle.dumps(net))(x), expected)


@pytest.mark.parametrize(
    'dtype, error', [(torch.double, 1e-5), (torch.half, 0.02), (torch.bfloat16, 0.1)]
)
@every_net
def test_maps_are_near_in_any_precision(name, dtype, error):
    net, x = build(name), images()
    with torch.no_grad():
        expected = net(x)
        for ours, exact in zip(copy.deepcopy(net).to(dtype)(x.to(dtype)), expected):
            assert ours.dtype == dtype
            assert (ours.float() - exact).norm() < error * exact.norm()


@staged_net
def test_autocast_trains_in_mixed_precision(name):
    net, x = build(name, out_norm=False), images()
    exact = gradients(net, net, x)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = gradients(lambda x: [m.float() for m in net(x)], net, x)
    flat = [torch.cat([g.float().flatten() for g in found]) for found in (exact, mixed)]
    assert (flat[0] - flat[1]).norm() < 0.1 * flat[0].norm()


EDGES = """
import sys, torch
sys.path.insert(0, {folder!r})
from itertools import product
from focal_mm.backbones.arguments import ELSEWHERE, RENAMED
from focal_mm.backbones.focalnet import FocalModulation
dtype = torch.{dtype}
exact = torch.promote_types(dtype, torch.float)
error = {{torch.bfloat16: 0.03, torch.half: 0.01}}.get(dtype, 1e-4)
sizes = (20, 31), (5, 33), (2, 3), (1, 1)
for case in product((1, 8, 16, 24), (1, 3, 9, 11, 13, 15), sizes, (False, True)):
    print(case, flush=True)
    channels, kernel, size, grad = case
    own, plain = (FocalModulation(channels, 1, kernel) for _ in range(2))
    plain.load_state_dict(own.to(dtype).state_dict())
    plain.to(exact)
    # In single precision, since PyTorch's own convolution in bfloat16 may not return either.
    plain.focal_layers[0][0] = torch.nn.Sequential(plain.focal_layers[0][0])
    x = torch.randn(1, *size, channels, dtype=dtype)
    results = []
    for module in (own, plain):
        image = x.to(next(module.parameters()).dtype).requires_grad_(grad)
        out = module(image)
        if grad:
            out = torch.cat([g.flatten() for g in torch.autograd.grad(
                out.sum(), (image, *module.parameters()))])
        results.append(out.to(exact))
    assert (results[0] - results[1]).norm() < error * results[1].norm() + error
"""


@torch_alone
@pytest.mark.parametrize('dtype', ['bfloat16', 'half', 'float', 'double'])
def test_depth_wise_convolution_of_any_size_returns(dtype):
    try:
        done = in_another_process(EDGES.format(folder=FOLDER, dtype=dtype), timeout=240)
    except subprocess.TimeoutExpired as error:
        last = (error.stdout or b'').decode().strip().splitlines()[-1:]
        pytest.fail(f'does not return: (channels, kernel, size, grad) = {last}')
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-10:]


def attend_to_map(attn: nn.Module, x: Tensor) -> Tensor:
    """Attention of an (N, 8, 8, C) map in windows of 4 x 4."""
    if not hasattr(attn, 'pooled_levels'):  # MixFormer's, of half of the channels
        return attn.attend(attn.qkv(x[..., : attn.qkv.in_features]))
    pooled = F.interpolate(x.permute(0, 3, 1, 2), (2, 2)).permute(0, 2, 3, 1)
    return attn((x, pooled), 8, 8)


@torch_alone
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', ['focal', 'focal_fast', 'mixformer'])
def test_scores_beyond_half_precision_are_scaled_first(name, training):
    sizes = dict(arch=dict(embed_dims=32, depths=(1,)), num_heads=1, window_size=4)
    levels = dict(focal_levels=2, focal_windows=3, expand_sizes=1) if name != 'mixformer' else {}
    attn = parts(build(name, **sizes, **levels), 'attn')[0]
    x = torch.randn(1, 8, 8, 32)
    x[..., 0] = x[..., 0].sign()  # tokens with 1 here are attended to, tokens with -1 are not
    dim = attn.qkv.in_features
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.zero_()
        attn.qkv.bias[:dim] = 80.0  # |q . k| is at least 16 * 80 * 80 = 102400
        attn.qkv.weight[dim : 2 * dim, 0] = 80.0
        attn.qkv.weight[2 * dim :] = torch.eye(dim)
        attn.proj.weight.copy_(torch.eye(len(attn.proj.weight)))
    with torch.set_grad_enabled(training):
        exact = attend_to_map(attn, x)
        half = attend_to_map(copy.deepcopy(attn).half(), x.half())
    assert half.isfinite().all()
    assert_close(half.float(), exact, atol=0.01)


@torch_alone
@leading_net
def test_gradients_of_a_batch_of_directions_are_those_of_each(name):
    net, x = build(name), images(1).requires_grad_()
    out = net(x)[-1].mean((2, 3))[:, :3]
    directions = torch.eye(3).unsqueeze(1)
    batched = torch.autograd.grad(out, x, directions, is_grads_batched=True, retain_graph=True)[0]
    single = [torch.autograd.grad(out, x, v, retain_graph=True)[0] for v in directions]
    assert_close(batched, torch.stack(single))


@torch_alone
@leading_net
@pytest.mark.parametrize('mode', ['fast', 'reference'])
def test_recomputation_makes_the_choice_of_the_forward_pass(name, mode):
    from focal_mm.kernels import use

    net = build(name, with_cp=True, **fixed_statistics(name)).train()
    with use(mode):
        loss = total(net(images()))
    with use('fast' if mode == 'reference' else 'reference'), FlopCounterMode(display=False):
        loss.backward()
    recomputed = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net = build(name, **fixed_statistics(name)).train()
    assert_close(recomputed, gradients(net, net, images()))


def test_method_of_another_module_is_called():
    ours, theirs = (build('focalnet').layers[0].blocks[0].modulation for _ in range(2))
    nn.init.normal_(theirs.focal_layers[0][0].weight)
    x = torch.randn(1, 5, 6, 8)
    before = ours(x)
    ours.contextualize = theirs.contextualize
    assert differs((ours(x),), (before,))


# ---- training, empty batches, BatchNorm --------------------------------------------------------


@torch_alone
@leading_net
def test_compiled_step_with_recomputation_has_the_gradients_of_eager(name):
    results = []
    for with_cp in (False, True):
        net = build(name, with_cp=with_cp).train()
        torch._dynamo.reset()
        run = torch.compile(net, backend='aot_eager') if with_cp else net
        results.append([*gradients(run, net, images()), *net.buffers()])
    assert_close(*results)


@every_net
def test_recomputed_blocks_give_the_same_gradients_and_statistics(name):
    results = []
    for with_cp in (False, True):
        # mmdet's own blocks count a batch twice.
        net = build(name, with_cp=with_cp, **({} if name in STAGED else fixed_statistics(name)))
        net.train()
        results.append([*gradients(net, net, images()), *net.buffers()])
    assert_close(*results)


@pytest.mark.parametrize('training', [False, True])
@every_net
def test_empty_batch_gives_empty_maps(name, training):
    net = build(name, **fixed_statistics(name)).train(training)
    shapes = [m.shape[1:] for m in net(images())]
    for with_grad in {training, False}:
        with torch.set_grad_enabled(with_grad):
            maps = net(images(0))
        assert [m.shape for m in maps] == [(0, *shape) for shape in shapes]
    if training:
        maps = net(images(0))
        sum(m.sum() for m in maps).backward()
        assert not any(p.grad.any() for p in net.parameters() if p.grad is not None)


@every_net
def test_a_lone_image_can_be_trained_on(name):
    net = build(name).train()
    assert all(g.isfinite().all() for g in gradients(net, net, images(1)))


@pytest.mark.parametrize('name', MIXED)
def test_synchronised_norms_can_be_reverted(name):
    net, x = build(name), images()
    expected = net(x)
    own = revert_sync_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)))
    assert_close(own.eval()(x), expected)
    ours, theirs = (gradients(m.train(), m, images(1)) for m in (own, net))
    assert_close(ours, theirs)


@pytest.mark.parametrize('revert', [False, True])
@pytest.mark.parametrize('name', [name for name in MIXED if name in STAGED])
def test_synchronised_norms_can_be_folded(name, revert):
    net, x = build(name), images()
    expected = net(x)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net).eval()
    net = revert_sync_batchnorm(net).eval() if revert else net
    net.fold_norms()
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())
    assert_close(net(x), expected)


@every_net
def test_norms_fused_by_mmcv_keep_the_maps(name):
    net, x = build(name), images()
    with torch.no_grad():
        expected = net(x)
        assert_close(fuse_conv_bn(copy.deepcopy(net))(x), expected)


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> Callable[[nn.Module], str]:
    """Writes a checkpoint as they are published, with a head."""

    def write(net: nn.Module, without: str = '') -> str:
        state_dict = {k: v for k, v in net.state_dict().items() if k != without}
        torch.save(dict(model={**state_dict, 'head.bias': torch.zeros(10)}), tmp_path / 'net.pth')
        return str(tmp_path / 'net.pth')

    return write


def by_config(net: nn.Module, path: str) -> None:
    net.init_cfg = dict(type='Pretrained', checkpoint=path)
    net.init_weights()


@pytest.mark.parametrize(
    'load',
    [by_config, load_checkpoint, lambda net, path: net.load_state_dict(torch.load(path)['model'])],
    ids=['init_cfg', 'load_checkpoint', 'load_state_dict'],
)
@staged_net
def test_checkpoint_loads_by_every_road(name, load, file):
    net, own = build(name), trained(build(name))
    load(own, file(net))
    assert_close(own.state_dict(), net.state_dict(), atol=0)


def with_parameter(net: nn.Module) -> None:
    net.__class__ = type('Own', (type(net),), {})
    net.extra = nn.Linear(3, 3)


def subclass_part(part: str, net: nn.Module) -> None:
    for module in parts(net, part):
        module.__class__ = type('Own', (type(module),), {})
        module.extra = nn.Parameter(torch.ones(3))


EXTENSIONS = {
    'net': with_parameter,
    'mlp': functools.partial(subclass_part, 'mlp'),
    'norm1': functools.partial(subclass_part, 'norm1'),
}


@pytest.mark.parametrize('load', [by_config, load_checkpoint])
@pytest.mark.parametrize('extend', EXTENSIONS)
@staged_net
def test_subclass_with_further_parameters_starts_from_a_published_file(
    name, extend, load, file, log
):
    net, own = build(name), trained(build(name))
    EXTENSIONS[extend](own)
    extra = {key: value.clone() for key, value in own.state_dict().items() if 'extra' in key}
    load(own, file(net))
    assert_close(own.state_dict(), {**net.state_dict(), **extra}, atol=0)
    # MMEngine itself lists every parameter and its size when it initializes.
    assert sum('extra' in line and 'torch.Size' not in line for line in log) == 1


@pytest.mark.parametrize('extend', [None, *EXTENSIONS])
@staged_net
def test_missing_layers_of_the_family_are_refused(name, extend, file):
    net = build(name)
    shallow = build(name, depths=tuple(len(stage.blocks) for stage in net.layers))
    deep = build(name, depths=tuple(len(stage.blocks) + 1 for stage in net.layers))
    for own, missing, word in (
        (deep, '', 'blocks'),
        (shallow, 'patch_embed.norm.weight', 'patch_'),
        (shallow, 'layers.0.blocks.0.norm2.weight', 'norm2'),
    ):
        own = copy.deepcopy(own)
        if extend is not None:
            EXTENSIONS[extend](own)
        before = copy.deepcopy(own.state_dict())
        with pytest.raises(CheckpointError, match=word):
            load_checkpoint(own, file(net, missing))
        assert_close(own.state_dict(), before, atol=0)


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize('patch_size', [2, 4, 8, 16])
@pytest.mark.parametrize('name', ['focalnet', 'focal'])
@pytest.mark.parametrize('out_norm', [False, True])
def test_overlapped_patches_of_any_size_give_maps_rounded_up(name, patch_size, out_norm):
    net = build(name, use_conv_embed=True, patch_size=patch_size, out_norm=out_norm)
    assert net.patch_embed.proj.kernel_size == (2 * patch_size - 1,) * 2
    for height, width in ((1, 1), (33, 47), (32, 64)):
        for i, out in enumerate(net(images(1, height, width))):
            stride = patch_size * 2**i
            assert out.shape[2:] == (-(-height // stride), -(-width // stride))


ALL_SIZES = {
    'focalnet': dict(
        embed_dims=8,
        depths=(1, 1),
        focal_levels=2,
        focal_windows=3,
        patch_size=4,
        use_conv_embed=False,
        use_postln=False,
        use_postln_in_modulation=False,
        normalize_modulator=False,
        layer_scale_init_value=None,
    ),
    'focal': dict(
        embed_dims=8,
        depths=(1, 2),
        num_heads=(1, 2),
        focal_levels=(3, 2),
        focal_windows=(5, 3),
        expand_sizes=(1, 3),
        use_conv_embed=False,
    ),
    'mixformer': dict(embed_dims=16, depths=(1, 2), num_heads=(2, 4), drop_path_rate=0.0),
}


@pytest.mark.parametrize('name', ALL_SIZES)
def test_sizes_may_all_be_arguments(name):
    own, net = build(name, arch=None, **ALL_SIZES[name]), build(name)
    assert_close(own(images()), net(images()))
    with pytest.raises(ValueError, match='depths'):
        build(name, arch=None, **{**ALL_SIZES[name], 'depths': None})


@pytest.mark.parametrize('name', ['focalnet', 'mixformer'])
def test_activation_of_the_mlps_alone_may_be_another(name):
    net = build(name, mlp_act_cfg=dict(type='ReLU'))
    acts = {step: type(m) for step, m in net.named_modules() if isinstance(m, (nn.GELU, nn.ReLU))}
    assert {act for step, act in acts.items() if step.endswith('mlp.act')} == {nn.ReLU}
    assert {act for step, act in acts.items() if not step.endswith('mlp.act')} == {nn.GELU}


def test_modulation_may_be_a_class(file, log):

    class Doubled(FocalModulation):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.extra = nn.Parameter(torch.tensor(2.0))

        def aggregate(self, levels: list[Tensor], gates: Tensor) -> Tensor:
            return self.extra * super().aggregate(levels, gates)

    net, own, x = build('focalnet'), build('focalnet', modulation=Doubled), images()
    load_checkpoint(own, file(net))
    assert sum('extra' in line for line in log) == 1
    with torch.no_grad():
        for module in parts(own, 'modulation'):
            module.extra.fill_(1.0)
        assert_close(own(x), net(x))
        for module, plain in zip(parts(own, 'modulation'), parts(net, 'modulation')):
            module.extra.fill_(2.0)
            plain.h.weight.mul_(2.0)  # linear in what is gathered
        assert_close(own(x), net(x))


# ---- what every backbone promises --------------------------------------------------------------


@pytest.mark.parametrize(
    'cls', [FocalNet, FocalTransformer, MixFormer, MixingResNet, MixingMobileNetV2]
)
def test_type_resolves_from_the_root_registry(cls):
    arguments = next(arguments for kind, arguments in NETS.values() if kind is cls)
    assert type(MODELS.build(dict(type=cls.__name__, **arguments))) is cls


@pytest.mark.parametrize(
    'cls, arch',
    [(cls, arch) for cls in (FocalNet, FocalTransformer, MixFormer) for arch in cls.archs],
)
def test_every_arch_builds(cls, arch):
    with torch.device('meta'):
        net = cls(arch)
    depths = cls.archs[arch]['depths']
    assert [len(stage.blocks) for stage in net.layers] == list(depths)
    assert all(t.is_meta for t in tensors(net))


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (33, 64), (97, 31)])
@every_net
def test_any_image_size_gives_maps_rounded_up(name, size):
    net = build(name)
    for grad_enabled in (False, True):
        with torch.set_grad_enabled(grad_enabled):
            for i, out in enumerate(net(images(2, *size))):
                assert out.shape[2:] == tuple(-(-side // (4 * 2**i)) for side in size)
                assert out.is_contiguous() and out.isfinite().all()


@every_net
def test_maps_are_the_same_twice_and_with_gradients(name):
    net, x = build(name), images()
    with torch.no_grad():
        first, second = net(x), net(x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert_close(net(x), first)


@every_net
def test_images_of_a_batch_do_not_see_each_other(name):
    net, x = build(name), images()
    with torch.no_grad():
        assert_close(tuple(m[1:] for m in net(x)), net(x[1:]))


@every_net
def test_training_can_follow_inference_mode(name):
    net, x = build(name), images(1, 49, 62)
    with torch.inference_mode():
        net(x)
    assert any(g.any() for g in gradients(net, net, x))


@every_net
def test_out_indices_choose_the_maps(name):
    net, x = build(name), images()
    last = len(net(x)) - 1
    own = NETS[name][0](**{**NETS[name][1], 'out_indices': (last,)}).eval()
    own.load_state_dict({k: v for k, v in net.state_dict().items() if k in own.state_dict()})
    assert_close(own(x), net(x)[last:])


@staged_net
def test_outputs_without_norm_are_the_raw_maps(name):
    net, raw, x = build(name), build(name, out_norm=False), images()
    raw.load_state_dict({k: v for k, v in net.state_dict().items() if k in raw.state_dict()})
    raw.patch_embed = net.patch_embed  # FocalNet's is padded otherwise in the official classifier
    for i, (ours, plain) in enumerate(zip(net(x), raw(x))):
        normed = getattr(net, f'norm{i}')(plain.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert_close(ours, normed)


@staged_net
def test_frozen_stages_survive_train(name):
    net = build(name, frozen_stages=1)
    assert net.train() is net
    frozen = [net.patch_embed, net.layers[0], net.norm0]
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert not any(m.training for whole in frozen for m in whole.modules())
    before = [b.clone() for m in frozen for b in m.buffers()]
    if len(net.layers) == 1:
        return
    assert net.layers[1].training and all(p.requires_grad for p in net.layers[1].parameters())
    total(net(images())).backward()
    assert_close([b for m in frozen for b in m.buffers()], before, atol=0)
    assert not any(p.grad is not None for m in frozen for p in m.parameters())


@every_net
def test_gradients_reach_every_parameter(name):
    net = build(name)
    names = [key for key, _ in net.named_parameters()]
    assert not [key for key, g in zip(names, gradients(net, net, images())) if not g.any()]


# ---- arguments of other implementations, norms, channels ---------------------------------------

# Arguments of the official code, mmdet's Swin, timm and Hugging Face, and what is to be given here.
FOREIGN = dict(
    embed_dim=(96, 'embed_dims'),
    in_chans=(3, 'in_channels'),
    use_checkpoint=(True, 'with_cp'),
    norm_layer=(nn.LayerNorm, 'norm_cfg'),
    pretrained=('net.pth', "init_cfg=dict.type='Pretrained'"),
    convert_weights=(True, 'recognised'),
    use_layerscale=(True, 'layer_scale_init_value'),
    img_size=(224, 'any size'),
    pretrain_img_size=(224, 'any size'),
    num_classes=(1000, 'head'),
    ape=(False, 'position embedding'),
    patch_norm=(True, 'norm'),
    hidden_act=('gelu', 'act_cfg'),
    with_cpp=(True, "did you mean 'with_cp'"),
)


@pytest.mark.parametrize('argument', FOREIGN)
@leading_net
def test_argument_of_another_implementation_is_named_with_ours(name, argument):
    value, ours = FOREIGN[argument]
    with pytest.raises(TypeError, match=ours) as error:
        build(name, **{argument: value})
    assert argument in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(TypeError, match=ours):
        MODELS.build(dict(type=NETS[name][0].__name__, **{argument: value}))


def test_all_foreign_arguments_are_named_at_once():
    with pytest.raises(TypeError, match='layer_scale_init_value.*focal_topk|focal_topk.*layer_sc'):
        FocalTransformer(layerscale_value=1e-4, focal_topK=64)


@pytest.mark.parametrize('cls', [FocalNet, FocalTransformer, MixFormer])
def test_arguments_are_those_of_all_families(cls):
    known = set(inspect.signature(cls).parameters)
    shared = {
        'arch', 'embed_dims', 'depths', 'in_channels', 'adapt_in_channels', 'patch_size',
        'mlp_ratio', 'drop_rate', 'drop_path_rate', 'norm_cfg', 'act_cfg', 'out_indices',
        'out_norm', 'frozen_stages', 'norm_eval', 'with_cp', 'init_cfg',
    }  # fmt: skip
    assert shared <= known and not known & {*RENAMED, *ELSEWHERE}


@pytest.mark.parametrize('cls', [FocalNet, FocalTransformer, MixFormer])
def test_arch_may_be_written_in_any_case(cls):
    with torch.device('meta'):
        for arch in cls.archs:
            again = cls(arch.upper().replace('_', '-'))
            assert [len(stage.blocks) for stage in again.layers] == list(cls.archs[arch]['depths'])
            break
        with pytest.raises(ValueError, match='Known'):
            cls('nothing')


NORMS = [
    dict(type='BN'),
    dict(type='BN', requires_grad=False),
    dict(type='SyncBN'),
    dict(type='GN', num_groups=2),
    dict(type='IN'),
]


@pytest.mark.parametrize('norm_cfg', NORMS, ids=str)
@staged_net
def test_norms_of_maps_get_the_map_with_its_channels_second(name, norm_cfg):
    net, seen = build(name, norm_cfg=norm_cfg), []
    kind = build_norm_layer(norm_cfg, 8)[1]
    for module in net.modules():
        if type(module) is type(kind):
            module.register_forward_pre_hook(
                lambda m, args: seen.append((getattr(m, 'num_features', 0) or m.num_channels, args))
            )
    maps = net(images())
    assert all(m.isfinite().all() for m in maps)
    assert len(seen) >= 3 and all(args[0].shape[1] == channels for channels, args in seen)
    assert any(g.any() for g in gradients(net, net, images()))


@staged_net
def test_layer_norm_of_maps_is_layer_norm(name):
    own, net = build(name, norm_cfg=dict(type='LN2d', eps=1e-5)), build(name)
    assert_close(own.load_state_dict(net.state_dict()) and own(images()), net(images()), atol=0)


@pytest.mark.parametrize(
    'norm_cfg, word',
    [
        (dict(type='BN1d'), 'BatchNorm2d'),
        (dict(type='GN', num_groups=3), 'num_groups'),
        (dict(type='GN'), 'num_groups'),
        (dict(type='Nothing'), 'SyncBN'),
        (None, "dict.type='LN'"),
    ],
    ids=str,
)
@staged_net
def test_norm_that_takes_no_maps_is_refused_in_one_line(name, norm_cfg, word):
    with pytest.raises(ValueError, match=word) as error:
        build(name, norm_cfg=norm_cfg)
    assert 'norm_cfg' in str(error.value) and '\n' not in str(error.value)


@staged_net
def test_norm_eval_keeps_all_statistics(name):
    net = build(name, norm_cfg=dict(type='BN'), norm_eval=True).train()
    before = [b.clone() for b in net.buffers()]
    net(images())
    assert before and all(torch.equal(a, b) for a, b in zip(before, net.buffers()))


ROADS_IN = {
    'init_cfg': by_config,
    'load_checkpoint': load_checkpoint,
    'load_state_dict': lambda net, path: net.load_state_dict(torch.load(path)['model']),
}


@pytest.mark.parametrize('load', ROADS_IN.values(), ids=ROADS_IN)
@pytest.mark.parametrize('channels', [1, 6])
@staged_net
def test_weights_of_three_channels_are_adapted_by_an_option(name, channels, load, file, log):
    net = build(name)
    plain = build(name, in_channels=channels)
    with pytest.raises(CheckpointError) as error:
        load(plain, file(net))
    line = str(error.value)
    assert all(f in line for f in ('3 channels', f'in_channels={channels}', 'adapt_in_channels'))
    assert '\n' not in line

    own = build(name, in_channels=channels, adapt_in_channels=True)
    load(own, file(net))
    x = images()
    if channels == 1:
        assert_close(own(x[:, :1]), net(x[:, :1].expand(-1, 3, -1, -1)))
    else:
        more = x.new_zeros(2, channels - 3, *x.shape[2:])
        assert_close(own(torch.cat([x, more], 1)), net(x))
        assert differs(own(torch.cat([x, more + 1], 1)), net(x))
    assert sum(f'adapted 3 -> {channels} image channels' in line for line in log) == 1
    again = build(name, in_channels=channels)
    load(again, file(own))
    assert_close(again.state_dict(), own.state_dict(), atol=0)


@staged_net
def test_weights_of_three_channels_are_no_weights_of_two(name, file):
    with pytest.raises(CheckpointError, match='3 image channels cannot be adapted to 2'):
        load_checkpoint(build(name, in_channels=2, adapt_in_channels=True), file(build(name)))


@pytest.mark.parametrize(
    'arguments',
    [
        dict(arch=5),
        dict(arch=None),
        dict(arch=dict(embed_dims=16)),
        dict(depths=()),
        dict(depths=(1, 1.5)),
        dict(embed_dims='16'),
        dict(patch_size=(4, 4)),
        dict(patch_size=0),
        dict(in_channels=0),
        dict(drop_path_rate=1.5),
        dict(drop_path_rate=(0, 0.1)),
        dict(frozen_stages=(0, 1)),
        dict(frozen_stages=9),
        dict(out_indices={1: 1}),
    ],
    ids=str,
)
@leading_net
def test_value_of_a_wrong_type_or_range_is_named_in_one_line(name, arguments):
    argument = next(iter(arguments))
    with pytest.raises(ValueError, match=argument) as error:
        build(name, **arguments)
    assert '\n' not in str(error.value)


@leading_net
def test_further_stages_double_the_channels(name):
    net = build_deep(name, depths=(1,) * 5)
    maps = net(images(1, 64, 64))
    channels = net.num_features[0]
    assert net.num_features == tuple(channels * 2**i for i in range(5))
    assert [m.shape[1:] for m in maps] == [
        (channels * 2**i, -(-16 // 2**i), -(-16 // 2**i)) for i in range(5)
    ]


# ---- which maps are returned -------------------------------------------------------------------


@pytest.mark.parametrize('name', [*LEADING, 'mixing_mobilenet'])
def test_maps_come_once_and_in_the_order_of_the_stages(name):
    net, x = build(name), images()
    maps = net(x)
    last = len(maps) - 1
    for asked in (0, -1, [last, 0], (-1, 0, -1)):
        own = build(name, out_indices=asked)
        own.load_state_dict({k: v for k, v in net.state_dict().items() if k in own.state_dict()})
        stages = {asked} if isinstance(asked, int) else {*asked}
        expected = sorted(i % len(maps) for i in stages)
        assert_close(own(x), tuple(maps[i] for i in dict.fromkeys(expected)), atol=0)


@pytest.mark.parametrize('asked', [4, -5, (), (0, 9), (1.0,), '0'])
@every_net
def test_stage_that_is_not_there_is_refused(name, asked):
    with pytest.raises(ValueError, match=r'out_indices=[^\n]*choose from 0 to \d') as error:
        build(name, out_indices=asked)
    assert '\n' not in str(error.value)


def build_deep(name: str, **kwargs) -> nn.Module:
    """Build a network of three stages."""
    sizes = dict(num_heads=2, focal_levels=2, focal_windows=3, expand_sizes=1)
    known = {key: value for key, value in sizes.items() if key in NETS[name][1]}
    return build(name, **{**known, 'depths': (1, 2, 1), **kwargs})


@leading_net
def test_stages_after_the_last_map_are_not_built(name, file, log):
    whole, x = build_deep(name, drop_path_rate=0.3), images()
    net = build_deep(name, drop_path_rate=0.3, out_indices=(1, 0), frozen_stages=3)
    assert len(net.layers) == 2 and net.layers[-1].downsample is None
    rates = [
        [m.drop_prob for m in owner.modules() if isinstance(m, DropPath)]
        for owner in (net, whole.layers[:2])
    ]
    assert rates[0] == rates[1] and 0 < max(rates[0]) < 0.3
    assert not any(p.requires_grad for p in net.train().parameters())
    for load in (load_checkpoint, by_config):
        load(net, file(whole))
        with torch.no_grad():  # as the frozen network computes
            maps = whole(x)
        assert_close(net.eval()(x), maps[:2], atol=0)
        left_out = 'layers.1.downsample, layers.2'
        assert sum(left_out in line for line in log) == 1 and log.clear() is None
    with pytest.raises(CheckpointError, match='layers.2|downsample'):  # of a network of two
        load_checkpoint(build_deep(name, depths=(1, 2)), file(whole))


@leading_net
def test_unread_maps_leave_training_as_it_is(name):
    """Parameters are in the graph of every map; neither values nor gradients change."""
    net, x = build_deep(name, **fixed_statistics(name)).train(), images()
    plain = copy.deepcopy(net).eval()
    for read in ((0,), (1, 2), (2,)):
        results = []
        for own in (net, plain):
            own.zero_grad()
            maps = own(x)
            total([maps[i] for i in read]).backward()
            results.append((maps, [p.grad for p in own.parameters()]))
        (ours, grads), (theirs, expected) = results
        assert_close(ours, theirs, atol=0)
        for g, e in zip(grads, expected):
            assert (g is None) == (e is None) and (g is None or torch.equal(g, e))
    seen = []
    for parameter in net.parameters():
        parameter.expand_as(parameter).grad_fn.next_functions[0][0].register_hook(
            lambda *_: seen.append(1)
        )
    net(x)[1].sum().backward()
    assert len(seen) == len(list(net.parameters()))


@torch_alone
@pytest.mark.filterwarnings('ignore::FutureWarning')
@leading_net
def test_transforms_give_the_gradients_of_autograd_in_training(name):
    net, x = build(name, **fixed_statistics(name)).train(), images(2)
    weights = {key: value.detach() for key, value in net.named_parameters()}

    def loss(w: dict[str, Tensor], image: Tensor) -> Tensor:
        return total(functional_call(net, w, (image[None],))[:1])

    ours = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    expected = zip(*(gradients(lambda x: net(x)[:1], net, image[None]) for image in x))
    assert_close(list(ours.values()), [torch.stack(g) for g in expected])
    tangents = jvp(net, (x,), (torch.ones_like(x),))[1]
    assert_close(tangents, jvp(net.eval(), (x,), (torch.ones_like(x),))[1])


@leading_net
def test_infinite_maps_that_nothing_reads_do_no_harm(name):
    net = build_deep(name, **fixed_statistics(name)).train()
    with torch.no_grad():
        for parameter in (*net.norm2.parameters(), *net.layers[2].parameters()):
            parameter.fill_(torch.inf)
    maps = net(images())
    assert not maps[2].isfinite().all()
    total(maps[:2]).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# ---- layer-wise learning rates -----------------------------------------------------------------


def depths_of(net: nn.Module, prefix: str = '') -> dict[str, int]:
    return {
        name: net.get_layer_depth(prefix + name, prefix)[0] for name, _ in net.named_parameters()
    }


@leading_net
def test_layer_depth_grows_from_the_stem_to_the_output_norms(name):
    net = build_deep(name)
    for prefix in ('', 'backbone.'):
        depths = depths_of(net, prefix)
        assert net.get_layer_depth('head.fc.weight', 'backbone.') == (5, 6)
        assert {net.get_layer_depth(prefix + key, prefix)[1] for key in depths} == {6}
        for start, depth in {
            'patch_embed.': 0,
            'layers.0.blocks.0.': 1,
            'layers.0.downsample.': 1,
            'layers.1.blocks.0.': 2,
            'layers.1.blocks.1.': 3,
            'layers.1.downsample.': 3,
            'layers.2.blocks.0.': 4,
            'norm': 5,
        }.items():
            assert {d for key, d in depths.items() if key.startswith(start)} == {depth}


class Model(nn.Module):
    """A backbone and a head, as any detector or segmentor has them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(8, 1, 1)

    def get_layer_depth(self, name: str) -> tuple[int, int]:
        return self.backbone.get_layer_depth(name, 'backbone.')


OWN = 'LearningRateDecayOptimizerConstructor'


def rates_of(model: nn.Module, package: str, constructor: str, options: dict) -> dict[str, float]:
    """Build an optimizer as a runner does in a package's scope; return rates by name."""
    scope = importlib.import_module(f'{package}.registry')
    importlib.import_module(f'{package}.engine')
    with DefaultScope.overwrite_default_scope(package):
        wrapper = scope.OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(
                type=constructor,
                optim_wrapper_cfg=dict(
                    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)
                ),
                paramwise_cfg=options,
            )
        )(model)
    names = {id(p): name for name, p in model.named_parameters()}
    rates: dict[str, float] = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in rates
            rates[names[id(parameter)]] = group['lr']
            name = names[id(parameter)]
            plain = parameter.ndim == 1 or name.endswith('.bias') or 'position_bias' in name
            assert constructor != OWN or group['weight_decay'] == (0.0 if plain else 0.1)
    return rates


@pytest.mark.parametrize(
    'package, constructor, options, rates',
    [
        (
            'mmpretrain',
            'LearningRateDecayOptimWrapperConstructor',
            dict(layer_decay_rate=0.5),
            (5, 4, 3, 2, 1),
        ),
        ('mmdet', OWN, dict(decay_rate=0.5), (5, 4, 3, 2, 1)),
        ('mmdet', OWN, dict(decay_rate=0.5, num_layers=8), (9, 7, 5, 3, 1)),
        ('mmseg', OWN, dict(decay_rate=0.5, num_layers=2), (3, 2, 2, 1, 1)),
        ('mmseg', OWN, dict(decay_rate=0.5, decay_type='stage_wise'), (4, 3, 2, 2, 1)),
        (
            'mmdet',
            OWN,
            dict(decay_rate=0.5, decay_type='stage_wise', num_layers=6),
            (7, 6, 5, 5, 4),
        ),
    ],
)
@leading_net
def test_learning_rates_fall_towards_the_stem(name, package, constructor, options, rates):
    model = Model(build_deep(name, frozen_stages=-1))
    found = rates_of(model, package, constructor, options)
    assert found.keys() == dict(model.named_parameters()).keys()
    starts = ('patch_embed', 'layers.0', 'layers.1.blocks.0', 'layers.1.blocks.1', 'layers.2')
    for start, power in zip(starts, rates):
        assert {r for key, r in found.items() if key.startswith(f'backbone.{start}')} == {
            0.5**power
        }
    assert {r for key, r in found.items() if key.startswith(('head', 'backbone.norm'))} == {1.0}


def test_frozen_parameters_have_no_learning_rate():
    model = Model(build_deep('focalnet', frozen_stages=1))
    found = rates_of(model, 'mmdet', OWN, dict(decay_rate=0.5))
    assert found.keys() == {key for key, p in model.named_parameters() if p.requires_grad}
    assert not any(key.startswith('backbone.layers.0') for key in found)


@pytest.mark.parametrize(
    'options, word',
    [
        (dict(num_layers=3), 'decay_rate'),
        (dict(decay_rate=0.5, decay_type='block_wise'), 'stage_wise'),
        (dict(decay_rate=0.5, decay_type='stage_wise', num_layers=2), 'num_layers=2 for 3 stages'),
    ],
)
def test_wrong_option_of_the_learning_rates_is_one_line(options, word):
    with pytest.raises(ValueError, match=word) as error:
        rates_of(Model(build_deep('focalnet')), 'mmdet', OWN, options)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_learning_rates_of_another_backbone_are_left_to_its_package(package):
    model = Model(nn.Conv2d(3, 8, 1))
    with pytest.raises(NotImplementedError):
        rates_of(model, package, OWN, dict(decay_rate=0.5, num_layers=6, decay_type='layer_wise'))
