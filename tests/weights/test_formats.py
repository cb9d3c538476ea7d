import pickle
from argparse import Namespace

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file

from focal_mm.backbones import FocalNet
from focal_mm.weights import CheckpointError, read_checkpoint, register

register()


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


@pytest.mark.stock
@pytest.mark.parametrize('wrap', [
    lambda weights: weights,
    lambda weights: {'model': weights},
    lambda weights: {'model': weights, 'config': Namespace(lr=0.1), 'epoch': 3},
    lambda weights: {'state_dict': weights, 'meta': {}},
    lambda weights: {'state_dict': {f'module.{k}': v for k, v in weights.items()}},
], ids=['bare', 'official', 'official-with-config', 'openmmlab', 'data-parallel'])
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


@pytest.mark.stock
def test_backbone_loads_from_a_detector(tmp_path, other):
    torch.save({'state_dict': {**{f'backbone.{k}': v for k, v in other.items()},
                               'neck.weight': torch.zeros(1)}}, tmp_path / 'x.pth')
    net = small(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth'),
                              prefix='backbone.'))
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
    history = HistoryBuffer([1., 2.], [1, 1])
    torch.save({'state_dict': other, 'message_hub': {'log_scalars': {'loss': history}}},
               tmp_path / 'x.pth')
    content = read_checkpoint(tmp_path / 'x.pth')
    assert content['message_hub']['log_scalars']['loss'].mean() == 1.5


@pytest.mark.stock
def test_history_gives_no_way_to_other_attributes(tmp_path, other):
    torch.save({'model': other, 'extra': Reaching()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='refused, since it stores builtins.getattr'):
        read_checkpoint(tmp_path / 'x.pth')


@pytest.mark.stock
def test_bare_pickle_is_refused(tmp_path):
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(Hostile(tmp_path / 'ran')))
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        read_checkpoint(tmp_path / 'x.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.stock
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('damage', [
    lambda data: data[:len(data) // 2], lambda data: data[:10], lambda data: b'',
    lambda data: b'<html>404</html>'], ids=['half', 'start', 'empty', 'page'])
def test_damaged_file_gives_one_line_and_leaves_the_model(tmp_path, other, suffix, damage):
    path = tmp_path / f'x{suffix}'
    save_file(other, path) if suffix == '.safetensors' else torch.save(other, path)
    path.write_bytes(damage(path.read_bytes()))
    net = small()
    with pytest.raises(CheckpointError, match=rf'x\{suffix}: .*get the file again') as error:
        load_checkpoint(net, str(path))
    assert '\n' not in str(error.value)
    torch.testing.assert_close(net.state_dict(), small().state_dict())


def lacking(weights: dict) -> dict:
    return {k: v for k, v in weights.items() if not k.startswith('layers.1.blocks')}


@pytest.mark.stock
@pytest.mark.parametrize('change, words', [
    (lacking, 'layers.1.blocks.0.norm1.weight is missing'),
    (lambda w: {**w, 'layers.2.blocks.0.norm1.weight': torch.zeros(8)},
     'layers.2.blocks.0.norm1.weight is not in the FocalNet'),
    (lambda w: {**w, 'layers.0.blocks.0.mlp.fc1.bias': torch.zeros(4)},
     r'layers.0.blocks.0.mlp.fc1.bias is \(4,\) where FocalNet has \(32,\)'),
    (lambda w: {'conv1.weight': torch.zeros(64, 3, 7, 7)},
     'not a checkpoint of FocalNet: it has conv1.weight'),
    (lambda w: {'epoch': 3}, 'not a checkpoint of FocalNet: it has epoch'),
], ids=['part', 'deeper', 'wider', 'foreign', 'no-weights'])
@pytest.mark.parametrize('road', ['init_cfg', 'load_checkpoint', 'detector'])
def test_file_that_does_not_belong_names_itself_and_its_key(tmp_path, other, change, words, road):
    path, weights = tmp_path / 'x.pth', change(other)
    net = small(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    if road == 'detector':
        weights = {f'backbone.{key}': value for key, value in weights.items()}
        words = words.replace('layers', 'backbone.layers').replace('has conv', 'has backbone.conv')
        words = words.replace('has epoch', 'has backbone.epoch')
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


OPTIONS = [dict(), dict(use_conv_embed=True, use_postln=True, layer_scale_init_value=0.5,
                        use_postln_in_modulation=True, normalize_modulator=True)]


@pytest.mark.parametrize('options', OPTIONS, ids=['plain', 'all-flags'])
def test_timm_model_gives_the_same_maps(tmp_path, options):
    timm = pytest.importorskip('timm')
    theirs = timm.models.focalnet.FocalNet(
        embed_dim=8, depths=(1, 1), focal_levels=(2, 2), focal_windows=(3, 3),
        use_overlap_down=bool(options), use_post_norm=bool(options),
        layerscale_value=0.5 if options else None,
        use_post_norm_in_modulation=bool(options), normalize_modulator=bool(options)).eval()
    perturb(theirs)
    save_file(theirs.state_dict(), tmp_path / 'x.safetensors')
    net = small(**options)
    load_checkpoint(net, str(tmp_path / 'x.safetensors'))
    torch.manual_seed(1)
    with torch.no_grad():
        expected = theirs.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    # timm counts the step down to a later stage.
    torch.testing.assert_close(list(features(net)), list(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize('options', OPTIONS, ids=['plain', 'all-flags'])
@pytest.mark.parametrize('kind', ['FocalNetModel', 'FocalNetForImageClassification'])
def test_hugging_face_model_gives_the_same_maps(tmp_path, options, kind):
    transformers = pytest.importorskip('transformers')
    config = transformers.FocalNetConfig(
        embed_dim=8, hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[2, 2],
        focal_windows=[3, 3], use_conv_embed=bool(options), use_post_layernorm=bool(options),
        use_layerscale=bool(options), layerscale_value=0.5, image_size=64,
        use_post_layernorm_in_modulation=bool(options), normalize_modulator=bool(options))
    theirs = getattr(transformers, kind)(config).eval()
    perturb(theirs)
    torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
    net = small(**options)
    load_checkpoint(net, str(tmp_path / 'pytorch_model.bin'))
    torch.manual_seed(1)
    with torch.no_grad():
        out = theirs(torch.randn(1, 3, 64, 64), output_hidden_states=True)
    torch.testing.assert_close(features(net)[-1], out.reshaped_hidden_states[-1],
                               atol=2e-5, rtol=2e-5)


def perturb(module: torch.nn.Module) -> None:
    """Norms and scales that start equal would hide a mix-up."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
