"""Contract of loading, over all families and all roads."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

import focal_mm  # noqa: F401
from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer
from focal_mm.backbones.mixing_convnets import MixingResNet
from focal_mm.weights import CheckpointError, convert, read_checkpoint
from focal_mm.weights.loading import FittedModule, find_source

pytestmark = pytest.mark.stock
TINY = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2))


def focalnet(cls: type = FocalNet, **kwargs) -> FocalNet:
    return cls(**{**dict(arch=dict(embed_dims=8, depths=(1, 2)), focal_levels=2), **kwargs})


def focal_transformer(**kwargs) -> FocalTransformer:
    return FocalTransformer(arch=TINY, **{**dict(focal_windows=3, expand_sizes=3), **kwargs})


def mixformer(**kwargs) -> MixFormer:
    return MixFormer(arch=TINY, **kwargs)


# A family, and arguments by which its parameters get other shapes.
FAMILIES = {
    'FocalNet': (focalnet, dict(focal_windows=7)),
    'FocalTransformer': (focal_transformer, dict(window_size=9)),
    'fast FocalTransformer': (lambda **kw: focal_transformer(focal_topk=16, **kw), {}),
    'MixFormer': (mixformer, dict(window_size=9, dwconv_kernel_size=5)),
}
all_families = pytest.mark.parametrize('build, other', FAMILIES.values(), ids=FAMILIES)


class Detector(nn.Module):
    """A model around a backbone that does not know of fitting."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(1, 1)


def shuffled(net: nn.Module, prefix: str = '') -> dict:
    return {
        prefix + key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }


def save(path, weights: dict) -> str:
    torch.save({'state_dict': weights}, path)
    return str(path)


def load_by(road: str, net: nn.Module, path: str) -> None:
    """Load a file into a backbone by one of the roads of OpenMMLab."""
    if road in ('init_cfg', 'prefix'):
        options = dict(prefix='backbone.') if road == 'prefix' else {}
        net.init_cfg = dict(type='Pretrained', checkpoint=path, **options)
        net.is_init = False
        net.init_weights()
    elif road == 'revise_keys':
        load_checkpoint(net, path, revise_keys=[(r'^backbone\.', '')])
    elif road == 'detector':
        load_checkpoint(Detector(net), path)
    else:
        average = ExponentialMovingAverage(Detector(net))
        weights = read_checkpoint(path)['state_dict']
        average.load_state_dict({f'module.{key}': v for key, v in weights.items()}, strict=False)


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """Lines that loading logs."""
    logged: list[str] = []
    monkeypatch.setattr(
        'focal_mm.weights.loading.print_log', lambda text, logger: logged.append(text)
    )
    return logged


@pytest.fixture
def fitted(monkeypatch) -> Counter:
    """Number of calls of ``fit_state_dict`` by module."""
    calls: Counter = Counter()

    def count(cls: type) -> None:
        original = cls.fit_state_dict

        def fit_state_dict(self, state_dict, prefix):
            if type(self).fit_state_dict is fit_state_dict:  # not by way of super()
                calls[self] += 1
            original(self, state_dict, prefix)

        monkeypatch.setattr(cls, 'fit_state_dict', fit_state_dict)

    classes = [FittedModule]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if 'fit_state_dict' in vars(cls):
            count(cls)
    return calls


def fitted_modules(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, FittedModule)]


# ---- once ----------------------------------------------------------------------------------------


ROADS = {
    'detector': lambda net, path: load_checkpoint(
        Detector(net), save(path, shuffled(Detector(net)))
    ),
    'detector, plain': lambda net, path: Detector(net).load_state_dict(
        shuffled(net, 'backbone.'), strict=False
    ),
    'init_cfg': lambda net, path: load_by('init_cfg', net, save(path, shuffled(net))),
    'prefix': lambda net, path: load_by('prefix', net, save(path, shuffled(Detector(net)))),
    'plain': lambda net, path: net.load_state_dict(shuffled(net)),
    'stage': lambda net, path: net.layers[1].load_state_dict(shuffled(net.layers[1])),
    'block': lambda net, path: (
        net.layers[1].blocks[0].load_state_dict(shuffled(net.layers[1].blocks[0]))
    ),
}


@all_families
@pytest.mark.parametrize('road', ROADS)
def test_each_module_is_fitted_once_by_every_road(tmp_path, fitted, build, other, road):
    net = build()
    part = {'stage': net.layers[1], 'block': net.layers[1].blocks[0]}.get(road, net)
    for load in (1, 2):
        ROADS[road](net, tmp_path / 'x.pth')
        assert fitted == dict.fromkeys(fitted_modules(part), load)


@all_families
def test_failed_load_does_not_keep_the_next_from_fitting(build, other, fitted):
    net = build(**other)
    weights = build().state_dict()
    wrong = {**weights, 'layers.1.blocks.1.mlp.fc2.bias': torch.zeros(3)}
    for _ in range(2):
        with pytest.raises(CheckpointError, match='layers.1.blocks.1.mlp.fc2.bias is'):
            net.load_state_dict(wrong)
    fitted.clear()
    net.load_state_dict(weights)
    assert fitted == dict.fromkeys(fitted_modules(net), 1)
    assert not any(module.changes for module in fitted_modules(net))


def test_module_with_two_names_is_fitted_under_both():
    net = focalnet(arch=dict(embed_dims=8, depths=(2, 1)), focal_windows=7)
    net.layers[0].blocks[1] = net.layers[0].blocks[0]
    weights = focalnet(arch=dict(embed_dims=8, depths=(2, 1))).state_dict()
    net.load_state_dict(weights)
    key = 'layers.0.blocks.1.modulation.focal_layers.0.0.weight'
    torch.testing.assert_close(net.state_dict()[key][..., 2:5, 2:5], weights[key])


def test_lone_stage_logs_a_line_a_kind(lines):
    focalnet(focal_windows=7).layers[1].load_state_dict(focalnet().layers[1].state_dict())
    assert sorted(lines) == ['2 kernels zero-padded 3x3 -> 7x7', '2 kernels zero-padded 5x5 -> 9x9']


@all_families
def test_copy_of_a_net_fits_for_itself(build, other):
    net, weights = build(**other), build().state_dict()
    again = copy.deepcopy(net)
    again.load_state_dict(weights)
    net.load_state_dict(weights)
    torch.testing.assert_close(again.state_dict(), net.state_dict())


# ---- files ---------------------------------------------------------------------------------------


def test_tensors_know_their_file_and_name_for_as_long_as_they_live(tmp_path):
    path = save(tmp_path / 'x.pth', shuffled(focalnet()))
    weights = read_checkpoint(path)['state_dict']
    key = 'layers.0.blocks.0.norm1.weight'
    assert find_source([weights[key]]) == (path, key)
    assert find_source([weights[key].clone(), 3]) is None


def test_read_weights_are_a_plain_state_dict(tmp_path):
    weights = read_checkpoint(save(tmp_path / 'x.pth', focalnet().state_dict()))['state_dict']
    metadata = weights._metadata
    assert metadata[''] == dict(version=1) and all('file' not in m for m in metadata.values())


def lacking(weights: dict) -> dict:
    return {key: value for key, value in weights.items() if 'blocks.1.norm1' not in key}


@all_families
@pytest.mark.parametrize('road', ['init_cfg', 'prefix', 'revise_keys', 'detector', 'average'])
def test_part_of_a_file_is_refused_by_every_road(tmp_path, build, other, road):
    net = build()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    path = save(
        tmp_path / 'x.pth', lacking(shuffled(net, '' if road == 'init_cfg' else 'backbone.'))
    )
    with pytest.raises(CheckpointError, match=r'x\.pth: \S*layers.1.blocks.1.norm1.weight is miss'):
        load_by(road, net, path)
    torch.testing.assert_close(dict(net.state_dict()), before)


@all_families
def test_part_that_is_no_file_may_be_loaded(build, other):
    net = build()
    part = lacking(shuffled(net))
    missing, unexpected = net.load_state_dict(part, strict=False)
    assert set(missing) == net.state_dict().keys() - part.keys() and not unexpected
    torch.testing.assert_close({key: net.state_dict()[key] for key in part}, part)


@pytest.mark.parametrize(
    'theirs, road, words',
    [
        ('backbone.0.', 'prefix', r"behind 'backbone\.0\.': .*prefix='backbone\.0\.'\)"),
        ('', 'detector', r'behind no prefix: .*checkpoint=\.\.\.\)'),
        ('student.backbone.', 'detector', r"prefix='student\.backbone\.'\)"),
        ('net.', 'init_cfg', r"prefix='net\.'\)"),
    ],
)
def test_file_under_another_prefix_is_told_so(tmp_path, theirs, road, words):
    path = save(tmp_path / 'x.pth', shuffled(focalnet(), theirs))
    with pytest.raises(CheckpointError, match=rf'x\.pth: not a checkpoint of FocalNet: .*{words}'):
        load_by(road, focalnet(), path)


@pytest.mark.parametrize(
    'theirs, ours, words',
    [
        ('backbone.0.', 'neck', r"begins with prefix='neck': .*|behind 'backbone\.0\.'"),
        ('backbone.', 'module.neck.', r"begins with prefix='neck\.'; .*behind 'backbone\.'"),
    ],
)
def test_prefix_that_no_key_has_names_those_that_are_there(tmp_path, theirs, ours, words):
    path = save(tmp_path / 'x.pth', shuffled(focalnet(), theirs))
    net = focalnet(init_cfg=dict(type='Pretrained', checkpoint=path, prefix=ours))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as error:
        net.init_weights()
    assert str(error.value).startswith(path) and '\n' not in str(error.value)
    torch.testing.assert_close(dict(net.state_dict()), before)


@all_families
@pytest.mark.parametrize(
    'theirs, ours',
    [
        ('module.backbone.', 'backbone.'),
        ('module.backbone.', 'module.backbone.'),
        ('backbone.', 'module.backbone'),
        ('_orig_mod.backbone.', 'backbone'),
        ('backbone._orig_mod.', 'backbone.'),
        ('module.', 'module.'),
        ('teacher.backbone.', 'teacher.backbone.'),
    ],
)
def test_prefix_is_found_with_and_without_wrappers(tmp_path, build, other, theirs, ours):
    weights = shuffled(build())
    path = save(tmp_path / 'x.pth', {theirs + key: value for key, value in weights.items()})
    net = build(init_cfg=dict(type='Pretrained', checkpoint=path, prefix=ours))
    net.init_weights()
    torch.testing.assert_close(dict(net.state_dict()), dict(weights))


def test_compiled_part_resumes_from_its_own_file(tmp_path):
    net = Detector(torch.compile(focalnet()))
    weights = shuffled(net)
    load_checkpoint(net, save(tmp_path / 'x.pth', weights))
    torch.testing.assert_close(dict(net.state_dict()), dict(weights))
    plain = Detector(focalnet())
    load_checkpoint(plain, str(tmp_path / 'x.pth'))
    torch.testing.assert_close(list(plain.state_dict().values()), list(weights.values()))


@pytest.mark.parametrize('road', ['init_cfg', 'detector'])
def test_foreign_file_is_refused_in_a_detector_too(tmp_path, road):
    path = save(tmp_path / 'x.pth', {'conv1.weight': torch.zeros(64, 3, 7, 7)})
    with pytest.raises(CheckpointError, match=r'x\.pth: not a checkpoint of FocalNet: it has conv'):
        load_by(road, focalnet(), path)


def test_file_without_a_head_is_refused_by_a_classifier(tmp_path):
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='FocalNet', arch=dict(embed_dims=8, depths=(1, 1)), out_norm=False),
            head=dict(
                type='focal_mm.TokenClsHead',
                num_classes=2,
                in_channels=16,
                loss=dict(type='mmpretrain.CrossEntropyLoss'),
            ),
        )
    )
    path = save(tmp_path / 'x.pth', shuffled(model.backbone))
    with pytest.raises(CheckpointError, match=r'x\.pth: head\.fc\.weight is missing'):
        load_checkpoint(model, path)


def test_averaged_weights_of_a_file_are_checked_too(tmp_path):
    """mmengine's EMAHook resumes them by ``load_state_dict`` with ``strict=False``."""
    torch.save(
        {
            'state_dict': shuffled(focalnet()),
            'ema_state_dict': dict(lacking(shuffled(focalnet(), 'module.')), steps=torch.tensor(3)),
        },
        tmp_path / 'x.pth',
    )
    average = ExponentialMovingAverage(focalnet())
    with pytest.raises(CheckpointError, match=r'x\.pth: module\.layers\.1\.\S+ is missing'):
        average.load_state_dict(read_checkpoint(tmp_path / 'x.pth')['ema_state_dict'], strict=False)


def test_foreign_names_that_are_no_file_are_left_to_pytorch():
    missing, unexpected = Detector(focalnet()).load_state_dict(
        {'conv1.weight': torch.zeros(1)}, strict=False
    )
    assert unexpected == ['conv1.weight'] and 'backbone.patch_embed.proj.weight' in missing


def test_batch_counts_may_be_missing(tmp_path):
    net = mixformer()
    weights = {k: v for k, v in shuffled(net).items() if not k.endswith('num_batches_tracked')}
    load_by('init_cfg', net, save(tmp_path / 'x.pth', weights))
    key = 'layers.1.blocks.1.attn.dwconv3x3.1.running_mean'
    torch.testing.assert_close(net.state_dict()[key], weights[key])


@pytest.mark.parametrize('value', [torch.zeros(8, 1, 4, 4), torch.zeros(3)])
def test_odd_kernel_that_is_none_is_refused(tmp_path, value):
    key = 'layers.0.blocks.0.modulation.focal_layers.0.0.weight'
    path = save(tmp_path / 'x.pth', {**shuffled(focalnet()), key: value})
    with pytest.raises(CheckpointError, match=rf'x\.pth: {key} is '):
        load_by('init_cfg', focalnet(), path)


# ---- what is new, and what is left out -----------------------------------------------------------


class Extended(FocalNet):
    """A user's network: a parameter more in each block."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for stage in self.layers:
            for block in stage.blocks:
                block.modulation.extra = nn.Parameter(torch.ones(1))


class Adapted(nn.Linear):
    """A user's layer."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.scale = nn.Parameter(torch.ones(1))


def adapted(**kwargs) -> FocalNet:
    net = focalnet(**kwargs)
    for stage in net.layers:
        for block in stage.blocks:
            block.mlp.fc1 = Adapted(block.mlp.fc1.in_features, block.mlp.fc1.out_features)
    return net


@pytest.mark.parametrize(
    'build, name',
    [
        (lambda: focalnet(Extended), 'layers.*.blocks.*.modulation.extra'),
        (adapted, 'layers.*.blocks.*.mlp.fc1.scale'),
    ],
    ids=['subclass', 'layer'],
)
@pytest.mark.parametrize('road', ['init_cfg', 'prefix', 'detector'])
@pytest.mark.parametrize('strict', [True, False])
def test_new_parameters_stay_as_initialized_and_are_named(
    tmp_path, lines, build, name, road, strict
):
    weights = shuffled(focalnet())
    prefix = '' if road == 'init_cfg' else 'backbone.'
    path = save(
        tmp_path / 'x.pth',
        {
            **{prefix + key: value for key, value in weights.items()},
            **({} if road == 'init_cfg' else shuffled(nn.ModuleDict(dict(neck=nn.Linear(1, 1))))),
        },
    )
    net = build()
    new = {key: value.clone() for key, value in net.state_dict().items() if key not in weights}
    if road == 'detector':
        load_checkpoint(Detector(net), path, strict=strict)
    else:
        load_by(road, net, path)
    torch.testing.assert_close(dict(net.state_dict()), {**weights, **new})
    assert lines == [f'3 parameters not in {path}, left as initialized: {name}']


@pytest.mark.parametrize(
    'build, words',
    [
        (
            lambda: focalnet(Extended, arch=dict(embed_dims=8, depths=(1, 3))),
            r'layers\.1\.blocks\.2\.\S+ is missing',
        ),
        (lambda: focalnet(use_postln_in_modulation=True), r'modulation\.ln\.weight is missing'),
        (lambda: focalnet(layer_scale_init_value=1e-4), r'gamma_1 is missing'),
    ],
    ids=['deeper subclass', 'option', 'other option'],
)
def test_what_the_checkpoint_could_have_is_not_new(tmp_path, build, words):
    with pytest.raises(CheckpointError, match=rf'x\.pth: \S*{words}'):
        load_by('init_cfg', build(), save(tmp_path / 'x.pth', shuffled(focalnet())))


@all_families
@pytest.mark.parametrize(
    'ours, left_out',
    [
        (dict(out_indices=(1,)), '1 output norm of the checkpoint left out: norm0'),
        (dict(out_norm=False), '2 output norms of the checkpoint left out: norm0, norm1'),
    ],
)
def test_norms_of_no_output_are_left_out_and_named(tmp_path, lines, build, other, ours, left_out):
    net, weights = build(**ours), shuffled(build())
    load_by('init_cfg', net, save(tmp_path / 'x.pth', weights))
    torch.testing.assert_close(
        dict(net.state_dict()), {key: weights[key] for key in net.state_dict()}
    )
    assert lines == [left_out]


@all_families
def test_norm_of_a_stage_that_is_not_there_is_refused(tmp_path, build, other):
    path = save(tmp_path / 'x.pth', {**shuffled(build()), 'norm2.weight': torch.zeros(8)})
    with pytest.raises(CheckpointError, match=r'x\.pth: norm2\.weight is not in the'):
        load_by('init_cfg', build(), path)


def test_file_of_the_plain_convnet_loads_up_to_the_last_stage(tmp_path, lines):
    plain, net = MODELS.build(dict(type='mmdet.ResNet', depth=50)), MixingResNet()
    weights = {**shuffled(plain), 'fc.weight': torch.zeros(1)}
    load_by('init_cfg', net, save(tmp_path / 'x.pth', weights))
    names = net.convnet.state_dict()
    torch.testing.assert_close(dict(names), {key: weights[key] for key in names})
    assert '2 parts not in the checkpoint, left as initialized' in lines


def test_part_of_the_plain_convnet_is_refused(tmp_path):
    weights = shuffled(MODELS.build(dict(type='mmdet.ResNet', depth=50)))
    del weights['layer1.0.conv1.weight']
    with pytest.raises(CheckpointError, match=r'x\.pth: convnet\.layer1\.0\.conv1\.weight is miss'):
        load_by('init_cfg', MixingResNet(), save(tmp_path / 'x.pth', weights))


# ---- from the meta device ------------------------------------------------------------------------


@all_families
def test_meta_device_gives_way_to_fitted_tensors(build, other):
    expected, weights = build(**other), shuffled(build())
    expected.load_state_dict(weights)
    with torch.device('meta'):
        net = build(**other)
    net.load_state_dict(weights, assign=True)
    assert not any(value.is_meta for value in net.state_dict().values())
    torch.testing.assert_close(net.state_dict(), expected.state_dict())
    assert all(value.is_contiguous() for value in net.state_dict().values())


@all_families
def test_meta_device_gives_way_to_norms_that_the_checkpoint_lacks(build, other):
    with torch.device('meta'):
        net = build()
    net.load_state_dict(shuffled(build(out_norm=False)), assign=True)
    torch.testing.assert_close(net.norm1.weight.data, torch.ones_like(net.norm1.weight.data))
    assert not any(value.is_meta for value in net.state_dict().values())


def test_meta_device_gives_way_to_added_levels_and_surroundings():
    for build, theirs, ours in (
        (focalnet, {}, dict(focal_levels=3)),
        (focal_transformer, dict(expand_sizes=(3, 0)), {}),
    ):
        with torch.device('meta'):
            net = build(**ours)
        net.load_state_dict(build(**theirs).state_dict(), assign=True)
        assert not any(value.is_meta for value in net.state_dict().values())


@all_families
@pytest.mark.parametrize('road', ['revise_keys', 'plain'])
def test_other_parts_of_a_file_may_be_left_over(tmp_path, lines, build, other, road):
    """As with the networks of mmdet: names are revised for a whole file, not for a part of it."""
    net = build()
    file = {**shuffled(net, 'backbone.'), 'neck.conv.weight': torch.zeros(1)}
    path = save(tmp_path / 'x.pth', file)
    if road == 'revise_keys':
        load_checkpoint(net, path, revise_keys=[(r'^backbone\.', '')])
    else:
        weights = read_checkpoint(path)['state_dict']
        net.load_state_dict(
            {key.removeprefix('backbone.'): value for key, value in weights.items()}, strict=False
        )
    torch.testing.assert_close(
        dict(net.state_dict()), {key: file[f'backbone.{key}'] for key in net.state_dict()}
    )
    assert lines == ['1 tensor of the checkpoint left over: neck']


def test_whole_model_of_another_trainer_is_told_how_to_convert(tmp_path):
    net = focalnet()
    path = save(tmp_path / 'x.pth', {'state_dict': shuffled(Detector(net), 'net.')})
    words = rf'focal-mm weights convert {path} NEW\.pth --prefix net\.$'
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(Detector(net), path)
    convert(path, tmp_path / 'new.pth', prefix='net.')
    load_checkpoint(Detector(net), str(tmp_path / 'new.pth'), strict=True)
    with pytest.raises(ValueError, match=r"no name begins with 'model\.'"):
        convert(path, tmp_path / 'other.pth', prefix='model.')
