import os
import pickle
import re
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file, save_file

from focal_mm.backbones import FocalNet, FocalTransformer, MixFormer
from focal_mm.weights import CheckpointError, convert, read_checkpoint, recognise


def small(**kwargs) -> FocalNet:
    torch.manual_seed(0)
    sizes = dict(arch=dict(embed_dims=8, depths=(1, 1)), focal_levels=2, out_norm=False)
    return FocalNet(**{**sizes, **kwargs}).eval()


@pytest.fixture
def other() -> dict:
    """Weights that ``small()`` does not have yet."""
    return {key: torch.randn_like(value) for key, value in small().state_dict().items()}


def features(net: torch.nn.Module) -> list:
    torch.manual_seed(1)
    with torch.no_grad():
        return net(torch.randn(1, 3, 64, 64))


def behind(prefix: str, weights: dict) -> dict:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.stock
@pytest.mark.parametrize(
    'wrap',
    [
        lambda weights: weights,
        lambda weights: {'model': weights},
        lambda weights: {'model': weights, 'config': Namespace(lr=0.1), 'epoch': 3},
        lambda weights: {'state_dict': weights, 'meta': {}},
        lambda weights: {'state_dict': behind('module.', weights)},
        lambda weights: {'model': behind('_orig_mod.', weights)},
        lambda weights: behind('module._orig_mod.', weights),
        lambda weights: {
            'ema_state_dict': {**behind('module.', weights), 'steps': torch.tensor(3)}
        },
        lambda weights: {'model_ema': behind('module.', weights), 'epoch': 3},
        lambda weights: {'teacher': weights, 'student': {k: 0 * v for k, v in weights.items()}},
        lambda weights: {'net': weights, 'optimizer': {'state': {}}},
    ],
    ids=[
        'bare',
        'official',
        'official-with-config',
        'openmmlab',
        'data-parallel',
        'compiled',
        'both',
        'average of mmengine',
        'average of the authors',
        'teacher',
        'any place',
    ],
)
def test_file_loads_however_it_is_wrapped(tmp_path, other, wrap):
    torch.save(wrap(other), tmp_path / 'x.pth')
    net = small()
    load_checkpoint(net, str(tmp_path / 'x.pth'))
    torch.testing.assert_close(dict(net.state_dict()), other)


@pytest.mark.stock
def test_safetensors_load(tmp_path, other):
    save_file(other, tmp_path / 'x.safetensors')
    net = small(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.safetensors')))
    net.init_weights()
    torch.testing.assert_close(dict(net.state_dict()), other)


WRITERS = {
    'zip': torch.save,
    'before torch 1.6': lambda weights, path: torch.save(
        weights, path, _use_new_zipfile_serialization=False
    ),
    'safetensors': save_file,
    'paddle': lambda weights, path: path.write_bytes(
        pickle.dumps({key: value.numpy() for key, value in weights.items()})
    ),
}


@pytest.mark.stock
@pytest.mark.parametrize('suffix', ['.pth', '.bin', '.safetensors', '.pdparams', ''])
@pytest.mark.parametrize('write', WRITERS.values(), ids=WRITERS)
def test_kind_of_a_file_shows_in_its_bytes_not_in_its_name(tmp_path, other, write, suffix):
    write(other, tmp_path / f'x{suffix}')
    torch.testing.assert_close(dict(read_checkpoint(tmp_path / f'x{suffix}')), other)


@pytest.mark.stock
def test_backbone_loads_from_a_detector(tmp_path, other):
    torch.save(
        {
            'state_dict': {
                **{f'backbone.{k}': v for k, v in other.items()},
                'neck.weight': torch.zeros(1),
            }
        },
        tmp_path / 'x.pth',
    )
    net = small(
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'), prefix='backbone.')
    )
    net.init_weights()
    torch.testing.assert_close(dict(net.state_dict()), other)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.stock
@pytest.mark.parametrize('place', ['beside', 'within'])
def test_hostile_file_is_refused_and_runs_nothing(tmp_path, other, place):
    hostile = Hostile(tmp_path / 'ran')
    content = {'model': other, 'extra': hostile} if place == 'beside' else {'model': {'a': hostile}}
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth: refused.*open.*run code'):
        load_checkpoint(small(), str(tmp_path / 'x.pth'))
    assert not (tmp_path / 'ran').exists()


class Reaching:
    """Reaches for what an allowed class leads to."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.stock
def test_checkpoint_of_a_training_run_loads_with_its_history(tmp_path, other):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(
        {'state_dict': other, 'message_hub': {'log_scalars': {'loss': history}}}, tmp_path / 'x.pth'
    )
    content = read_checkpoint(tmp_path / 'x.pth')
    assert content['message_hub']['log_scalars']['loss'].mean() == 1.5


@pytest.mark.stock
def test_history_gives_no_way_to_other_attributes(tmp_path, other):
    torch.save({'model': other, 'extra': Reaching()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='refused, since it stores builtins.getattr'):
        read_checkpoint(tmp_path / 'x.pth')


class Shell(Hostile):
    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


HOSTILE_WRITERS = {
    **{
        f'pickle protocol {protocol}': lambda content, path, protocol=protocol: path.write_bytes(
            pickle.dumps(content, protocol)
        )
        for protocol in (0, 2, 5)
    },
    'zip': torch.save,
    'before torch 1.6': WRITERS['before torch 1.6'],
}


@pytest.mark.stock
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.pdparams', ''])
@pytest.mark.parametrize('write', HOSTILE_WRITERS.values(), ids=HOSTILE_WRITERS)
def test_hostile_file_under_any_name_is_refused_and_runs_nothing(tmp_path, write, suffix):
    write({'a': Shell(tmp_path / 'ran')}, tmp_path / f'x{suffix}')
    with pytest.raises(CheckpointError, match=rf'x{suffix}: refused, .* (posix|os|nt)\.system'):
        read_checkpoint(tmp_path / f'x{suffix}')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.stock
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.pdparams'])
@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:10],
        lambda data: b'',
        lambda data: b'<html>404</html>',
        lambda data: b'\x80\x04}.',
    ],
    ids=['half', 'start', 'empty', 'page', 'empty pickle'],
)
def test_damaged_file_gives_one_line_and_leaves_the_model(tmp_path, other, suffix, damage):
    path = tmp_path / f'x{suffix}'
    write = {'.safetensors': save_file, '.pdparams': WRITERS['paddle']}.get(suffix, torch.save)
    write(other, path)
    path.write_bytes(damage(path.read_bytes()))
    net = small()
    with pytest.raises(CheckpointError, match=rf'x\{suffix}: .*get the file again') as error:
        load_checkpoint(net, str(path))
    assert '\n' not in str(error.value)
    torch.testing.assert_close(net.state_dict(), small().state_dict())


def lacking(weights: dict) -> dict:
    return {k: v for k, v in weights.items() if not k.startswith('layers.1.blocks')}


@pytest.mark.stock
@pytest.mark.parametrize(
    'change, words',
    [
        (lacking, 'layers.1.blocks.0.norm1.weight is missing'),
        (
            lambda w: {**w, 'layers.2.blocks.0.norm1.weight': torch.zeros(8)},
            'layers.2.blocks.0.norm1.weight is not in the FocalNet',
        ),
        (
            lambda w: {**w, 'layers.0.blocks.0.mlp.fc1.bias': torch.zeros(4)},
            r'layers.0.blocks.0.mlp.fc1.bias is \(4,\) where FocalNet has \(32,\)',
        ),
        (
            lambda w: {'conv1.weight': torch.zeros(64, 3, 7, 7)},
            'not a checkpoint of FocalNet: it has conv1.weight',
        ),
        (lambda w: {'epoch': 3}, 'holds no weights, only epoch'),
    ],
    ids=['part', 'deeper', 'wider', 'foreign', 'no-weights'],
)
@pytest.mark.parametrize('road', ['init_cfg', 'load_checkpoint', 'detector'])
def test_file_that_does_not_belong_names_itself_and_its_key(tmp_path, other, change, words, road):
    path, weights = tmp_path / 'x.pth', change(other)
    net = small(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    if road == 'detector':
        weights = {f'backbone.{key}': value for key, value in weights.items()}
        words = words.replace('layers', 'backbone.layers').replace('has conv', 'has backbone.conv')
        words = words.replace('only epoch', 'only backbone.epoch')
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=rf'x\.pth: {words}'):
        if road == 'init_cfg':
            net.init_weights()
        elif road == 'detector':
            load_checkpoint(torch.nn.ModuleDict(dict(backbone=net)), str(path))
        else:
            load_checkpoint(net, str(path))
    torch.testing.assert_close(dict(net.state_dict()), before)


@pytest.mark.stock
def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.pth: no such checkpoint file'):
        load_checkpoint(small(), str(tmp_path / 'absent.pth'))


OPTIONS = [
    {},
    dict(
        use_conv_embed=True,
        use_postln=True,
        layer_scale_init_value=0.5,
        use_postln_in_modulation=True,
        normalize_modulator=True,
    ),
]


@pytest.mark.parametrize('options', OPTIONS, ids=['plain', 'all-flags'])
def test_timm_model_gives_the_same_maps(tmp_path, options):
    timm = pytest.importorskip('timm')
    theirs = timm.models.focalnet.FocalNet(
        embed_dim=8,
        depths=(1, 1),
        focal_levels=(2, 2),
        focal_windows=(3, 3),
        use_overlap_down=bool(options),
        use_post_norm=bool(options),
        layerscale_value=0.5 if options else None,
        use_post_norm_in_modulation=bool(options),
        normalize_modulator=bool(options),
    ).eval()
    perturb(theirs)
    save_file(theirs.state_dict(), tmp_path / 'x.safetensors')
    net = small(**options)
    load_checkpoint(net, str(tmp_path / 'x.safetensors'))
    torch.manual_seed(1)
    with torch.no_grad():
        expected = theirs.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    # timm counts the step down to a later stage.
    torch.testing.assert_close(list(features(net)), list(expected), atol=2e-5, rtol=2e-5)


def test_timm_features_load_alone_and_in_a_detector(tmp_path):
    timm = pytest.importorskip('timm')
    theirs = timm.models.focalnet._create_focalnet(
        'focalnet_tiny_srf',
        features_only=True,
        embed_dim=8,
        depths=(1, 1),
        focal_levels=(2, 2),
        focal_windows=(3, 3),
        out_indices=(0, 1),
    )
    perturb(theirs)
    weights = theirs.state_dict()
    assert 'layers_0.blocks.0.modulation.f.weight' in weights
    nets = []
    for prefix in ('', 'backbone.'):
        save_file(behind(prefix, weights), tmp_path / 'x.safetensors')
        cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.safetensors'))
        net = small(out_norm=False, init_cfg=dict(cfg, prefix=prefix) if prefix else cfg)
        net.init_weights()
        nets.append(net)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = theirs.eval()(torch.randn(1, 3, 64, 64))
    for net in nets:
        torch.testing.assert_close(list(features(net.eval())), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('options', OPTIONS, ids=['plain', 'all-flags'])
@pytest.mark.parametrize(
    'kind',
    ['FocalNetModel', 'FocalNetForImageClassification', 'FocalNetForMaskedImageModeling'],
)
def test_hugging_face_model_gives_the_same_maps(tmp_path, options, kind):
    transformers = pytest.importorskip('transformers')
    config = transformers.FocalNetConfig(
        embed_dim=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        use_conv_embed=bool(options),
        use_post_layernorm=bool(options),
        use_layerscale=bool(options),
        layerscale_value=0.5,
        image_size=64,
        use_post_layernorm_in_modulation=bool(options),
        normalize_modulator=bool(options),
    )
    theirs = getattr(transformers, kind)(config).eval()
    perturb(theirs)
    assert kind != 'FocalNetForMaskedImageModeling' or any(
        key.startswith('decoder.') for key in theirs.state_dict()
    )
    torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
    net = small(**options)
    load_checkpoint(net, str(tmp_path / 'pytorch_model.bin'))
    torch.manual_seed(1)
    with torch.no_grad():
        out = theirs(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    torch.testing.assert_close(
        features(net)[-1], out.reshaped_hidden_states[-1], atol=2e-5, rtol=2e-5
    )


def perturb(module: torch.nn.Module) -> None:
    """Norms and scales that start equal would hide a mix-up."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


# ---- whose names these are ---------------------------------------------------------------------


TINY = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2))


def as_paddle(state_dict: dict) -> dict:
    """What MixFormer's authors store: their names of BatchNorm's statistics, linear layers as
    (in, out), and an index that follows from the window size."""
    stored = {'layers.0.blocks.0.attn.relative_position_index': torch.zeros(49, 49).long()}
    for key, value in state_dict.items():
        if key.endswith('num_batches_tracked'):
            continue
        key = key.replace('running_mean', '_mean').replace('running_var', '_variance')
        stored[key] = value.t() if key.endswith('.weight') and value.ndim == 2 else value
    return stored


def mixformer() -> MixFormer:
    return MixFormer(arch=TINY, out_norm=False).eval()


def focal_transformer(**kwargs) -> FocalTransformer:
    return FocalTransformer(arch=TINY, focal_windows=3, expand_sizes=3, out_norm=False, **kwargs)


@pytest.mark.stock
@pytest.mark.parametrize(
    'net, expected',
    [
        (small, 'official FocalNet'),
        (focal_transformer, 'official Focal Transformer'),
        (lambda: focal_transformer(focal_topk=16), 'official Focal Transformer v2'),
        (mixformer, 'PyTorch MixFormer'),
        (lambda: torch.nn.Linear(1, 1), None),
    ],
    ids=['FocalNet', 'FocalTransformer', 'fast FocalTransformer', 'MixFormer', 'foreign'],
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_names_of_each_family_are_known(net, expected, prefix):
    assert recognise(net().state_dict(prefix=prefix)) == expected


@pytest.mark.stock
def test_names_of_paddle_are_known():
    assert recognise(as_paddle(mixformer().state_dict())) == 'Paddle MixFormer'


def test_names_of_timm_are_known():
    timm = pytest.importorskip('timm')
    net = timm.models.focalnet.FocalNet(embed_dim=8, depths=(1, 1))
    assert recognise(net.state_dict()) == 'timm FocalNet'


@pytest.mark.parametrize('kind', ['FocalNetModel', 'FocalNetForImageClassification'])
def test_names_of_hugging_face_are_known(kind):
    transformers = pytest.importorskip('transformers')
    config = transformers.FocalNetConfig(
        embed_dim=8, hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]
    )
    state_dict = getattr(transformers, kind)(config).state_dict()
    assert recognise(state_dict) == 'Hugging Face FocalNet'


@pytest.mark.stock
@pytest.mark.parametrize(
    'head, model',
    [
        ('roi_head.bbox_head.fc_cls', 'an mmdet detector'),
        ('bbox_head.scales.0', 'an mmdet detector'),
        ('decode_head.conv_seg', 'an mmseg segmentor'),
        ('head.fc', 'a larger model'),
    ],
)
def test_whole_models_are_known(head, model):
    state_dict = small().state_dict(prefix='backbone.') | {f'{head}.weight': torch.zeros(1)}
    assert recognise(state_dict) == f'official FocalNet in {model}'


@pytest.mark.stock
def test_paddle_file_gives_the_same_maps(tmp_path):
    theirs = mixformer()
    perturb(theirs)
    WRITERS['paddle'](as_paddle(theirs.state_dict()), tmp_path / 'x.pdparams')
    net = mixformer()
    net.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pdparams'))
    net.init_weights()
    torch.testing.assert_close(features(net), features(theirs))


# ---- whole models of mmdet 2 and mmseg 0 -------------------------------------------------------


FPN = 'neck.fpn_convs.N.conv neck.lateral_convs.N.conv '
RPN = 'rpn_head.rpn_cls rpn_head.rpn_conv rpn_head.rpn_reg '
# Config of today, and names as the official detection and segmentation code stores them: read in
# the mmdet 2.11 and mmseg 0.11 of SwinTransformer's repositories, on which it stands.
WHOLE = {
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': FPN
    + RPN
    + (
        'roi_head.bbox_head.fc_cls roi_head.bbox_head.fc_reg roi_head.bbox_head.shared_fcs.N '
        'roi_head.mask_head.conv_logits roi_head.mask_head.convs.N.conv '
        'roi_head.mask_head.upsample'
    ),
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': FPN
    + RPN
    + (
        'roi_head.bbox_head.N.fc_cls roi_head.bbox_head.N.fc_reg '
        'roi_head.bbox_head.N.shared_fcs.N roi_head.mask_head.N.conv_logits '
        'roi_head.mask_head.N.convs.N.conv roi_head.mask_head.N.upsample'
    ),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': FPN
    + (
        'bbox_head.atss_centerness bbox_head.atss_cls bbox_head.atss_reg bbox_head.scales.N '
        'bbox_head.cls_convs.N.conv bbox_head.cls_convs.N.gn '
        'bbox_head.reg_convs.N.conv bbox_head.reg_convs.N.gn'
    ),
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': FPN
    + (
        'rpn_head.init_proposal_bboxes rpn_head.init_proposal_features '
        + ' '.join(
            f'roi_head.bbox_head.N.{name}'
            for name in (
                'attention.attn',
                'attention.attn.out_proj',
                'attention_norm',
                'cls_fcs.N',
                'fc_cls',
                'fc_reg',
                'ffn.layers.N',
                'ffn.layers.N.N',
                'ffn_norm',
                'reg_fcs.N',
                'instance_interactive_conv.dynamic_layer',
                'instance_interactive_conv.fc_layer',
                'instance_interactive_conv.fc_norm',
                'instance_interactive_conv.norm_in',
                'instance_interactive_conv.norm_out',
                'instance_interactive_conv_norm',
            )
        )
    ),
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': (
        'auxiliary_head.conv_seg auxiliary_head.convs.N.bn auxiliary_head.convs.N.conv '
        'decode_head.bottleneck.bn decode_head.bottleneck.conv decode_head.conv_seg '
        'decode_head.fpn_bottleneck.bn decode_head.fpn_bottleneck.conv '
        'decode_head.fpn_convs.N.bn decode_head.fpn_convs.N.conv '
        'decode_head.lateral_convs.N.bn decode_head.lateral_convs.N.conv '
        'decode_head.psp_modules.N.N.bn decode_head.psp_modules.N.N.conv'
    ),
}


def whole_model(name: str) -> torch.nn.Module:
    """The model of a config with the smallest FocalNet."""
    scope = name.split(':', maxsplit=1)[0]
    cfg = Config.fromfile(name).model
    cfg.backbone = dict(type='FocalNet', arch=dict(embed_dims=8, depths=(1, 1, 1, 1)))
    if scope == 'mmdet':
        cfg.neck.in_channels = [8, 16, 32, 64]
    else:
        cfg.decode_head.update(in_channels=[8, 16, 32, 64], channels=16, norm_cfg=dict(type='BN'))
        cfg.auxiliary_head.update(in_channels=32, channels=16, norm_cfg=dict(type='BN'))
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg)


@pytest.mark.stock
@pytest.mark.parametrize('name, old', WHOLE.items(), ids=WHOLE)
def test_necks_and_heads_have_the_names_of_the_official_checkpoints(name, old):
    with torch.device('meta'):
        keys = whole_model(name).state_dict()
    modules = {re.sub(r'\.\d+', '.N', key.rpartition('.')[0]) for key in keys}
    assert {name for name in modules if not name.startswith('backbone.')} == set(old.split())


@pytest.mark.stock
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', [next(iter(WHOLE)), [*WHOLE][-1]])
def test_official_checkpoint_of_a_whole_model_gives_the_same_outputs(tmp_path, name, prefix):
    theirs, ours = whole_model(name).eval(), whole_model(name).eval()
    perturb(theirs)
    optimizer = torch.optim.AdamW(theirs.parameters())
    meta = dict(
        mmcv_version='1.3.8',
        mmdet_version='2.11.0+',
        seed=None,
        epoch=12,
        iter=87960,
        config='model = dict(...)',
        CLASSES=('person', 'bicycle'),
        hook_msgs={},
    )
    torch.save(
        dict(
            meta=meta,
            optimizer=optimizer.state_dict(),
            state_dict=OrderedDict(theirs.state_dict(prefix=prefix)),
        ),
        tmp_path / 'x.pth',
    )
    load_checkpoint(ours, str(tmp_path / 'x.pth'), strict=True)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outs = [
            net.decode_head(net.extract_feat(image))
            if 'mmseg' in name
            else net.rpn_head(net.extract_feat(image))
            for net in (theirs, ours)
        ]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


# ---- converting --------------------------------------------------------------------------------


@pytest.mark.stock
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_converted_file_is_plain_and_loads(tmp_path, suffix):
    theirs = mixformer()
    perturb(theirs)
    WRITERS['paddle'](as_paddle(theirs.state_dict()), tmp_path / 'x.pdparams')
    target = tmp_path / 'new' / f'y{suffix}'
    origin, count = convert(tmp_path / 'x.pdparams', target)
    read = load_file if suffix == '.safetensors' else lambda path: torch.load(path)['state_dict']
    assert (origin, count) == ('Paddle MixFormer', len(read(target)))
    net = mixformer()
    load_checkpoint(net, str(target))
    torch.testing.assert_close(net.state_dict(), theirs.state_dict())
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.stock
def test_converted_detector_keeps_its_heads_and_nothing_else(tmp_path, other):
    weights = {f'backbone.{key}': value for key, value in other.items()}
    weights['roi_head.bbox_head.fc_cls.weight'] = torch.ones(2)
    torch.save({'meta': {'epoch': 1}, 'optimizer': {}, 'state_dict': weights}, tmp_path / 'x.pth')
    assert convert(tmp_path / 'x.pth', tmp_path / 'y.pth')[0].endswith('in an mmdet detector')
    content = torch.load(tmp_path / 'y.pth')
    assert list(content) == ['state_dict']
    torch.testing.assert_close(content['state_dict'], weights)


@pytest.mark.stock
def test_converted_file_has_no_more_than_its_tensors(tmp_path, other):
    whole = torch.zeros(1000, 1000)
    torch.save({**other, 'norm.weight': whole[0]}, tmp_path / 'x.pth')
    convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert (tmp_path / 'y.pth').stat().st_size < 1e6


@pytest.mark.stock
@pytest.mark.parametrize('name', ['x.pth', 'old.pth'])
def test_converting_never_overwrites(tmp_path, other, name):
    for path in ('x.pth', 'old.pth'):
        torch.save(other, tmp_path / path)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(FileExistsError, match=rf'{name} exists .* delete it, or name another'):
        convert(tmp_path / 'x.pth', tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.stock
def test_converted_file_of_another_model_keeps_its_names(tmp_path):
    weights = {'conv1.weight': torch.ones(1)}
    torch.save({'model': weights, 'epoch': 3}, tmp_path / 'x.pth')
    assert convert(tmp_path / 'x.pth', tmp_path / 'y.pth') == (None, 1)
    assert torch.load(tmp_path / 'y.pth') == {'state_dict': weights}


@pytest.mark.stock
@pytest.mark.parametrize('content, has', [({'epoch': 3}, 'epoch'), ([1], 'nothing')])
def test_file_without_weights_is_not_converted(tmp_path, content, has):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=f'x.pth: no state dict, .*; it has {has}'):
        convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert not (tmp_path / 'y.pth').exists()


@pytest.mark.stock
def test_what_a_run_wrote_is_read_as_plain_mmengine_reads_it(tmp_path):
    """Names and places of weights that are none of our families' stay."""
    for content in (
        {'model': {'conv1.weight': torch.ones(1)}, 'epoch': 3},
        {'state_dict': {'module.conv1.weight': torch.ones(1)}, 'meta': {'epoch': 3}},
        {'meta': {'epoch': 3}, 'state_dict': {}},
        {'conv1.weight': torch.ones(1)},
        [1, torch.ones(1)],
    ):
        torch.save(content, tmp_path / 'x.pth')
        assert repr(read_checkpoint(tmp_path / 'x.pth')) == repr(content)


@pytest.mark.stock
def test_other_kinds_of_output_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'y.onnx: .* \.pth or \.safetensors'):
        convert(tmp_path / 'x.pth', tmp_path / 'y.onnx')


@pytest.mark.stock
def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, other, monkeypatch):
    torch.save(other, tmp_path / 'x.pth')

    def full(weights, path):
        path.write_bytes(b'begun')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='y.pth: cannot be written .no space left'):
        convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']
